"""Children end when they are told to, when they are made to, and when we are gone."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from interlace_deploy.parts.children import Child, rotate, tail

Until = Callable[[Callable[[], object]], object]
Start = Callable[[str], Awaitable[Child]]

_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
_FAMILY = (
    "import subprocess, sys, time;"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], process_group=0);"
    "print(child.pid, flush=True); time.sleep(600)"
)


@pytest.fixture
def heard() -> list[str]:
    """The lines of the children."""
    return []


@pytest.fixture
async def start(tmp_path: Path, heard: list[str]) -> AsyncIterator[Start]:
    started: list[Child] = []

    async def run(program: str) -> Child:
        command = [sys.executable, "-c", program]
        started.append(
            await Child.start("child", command, tmp_path / "logs" / "child.log", os.environ, heed=heard.append)
        )
        return started[-1]

    yield run
    for child in started:
        await child.stop(0)


async def spoken(heard: list[str], count: int = 1) -> None:
    async with asyncio.timeout(60):
        while len(heard) < count:
            await asyncio.sleep(0.01)


async def test_both_outputs_go_to_the_log_and_lines_to_us(start: Start, heard: list[str]) -> None:
    child = await start(r"import os, sys; os.write(1, b'a\rb\n'); os.write(2, b'c\n'); sys.exit(3)")
    assert await child.wait() == 3
    await spoken(heard)
    assert heard == ["b"]
    assert sorted(child.last_lines()) == ["a", "b", "c"]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, buried or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_it_is_asked_to_end(start: Start, heard: list[str]) -> None:
    child = await start("import time; print('up', flush=True); time.sleep(600)")
    await spoken(heard)
    await child.stop(60)
    assert child.process.returncode == -signal.SIGTERM


async def test_it_is_made_to_end(start: Start, heard: list[str]) -> None:
    child = await start(_STUBBORN)
    await spoken(heard)
    await child.stop(0.2)
    assert child.process.returncode == -signal.SIGKILL


async def test_what_it_started_ends_with_it(start: Start, heard: list[str], until: Until) -> None:
    child = await start(_FAMILY)
    await spoken(heard)
    grandchild = int(heard[0])
    assert psutil.pid_exists(grandchild)
    await child.stop(60)
    until(lambda: is_gone(grandchild))


async def test_a_terminal_interrupt_does_not_reach_it(start: Start, heard: list[str]) -> None:
    child = await start("import time; print('up', flush=True); time.sleep(600)")
    await spoken(heard)
    assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid


def test_it_ends_when_we_are_killed(tmp_path: Path, until: Until) -> None:
    program = (
        "import asyncio, os, sys; from pathlib import Path; from interlace_deploy.parts.children import Child\n"
        "async def main():\n"
        "    command = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "    child = await Child.start('child', command, Path(sys.argv[1]), os.environ)\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())"
    )
    log = tmp_path / "child.log"
    with subprocess.Popen([sys.executable, "-c", program, str(log)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    until(lambda: is_gone(child))


def test_one_former_log_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    rotate(log)
    for text in ("first", "second", "third"):
        log.write_text(text)
        rotate(log)
    assert not log.exists()
    assert tail(tmp_path / "child.log.1", 5) == ["third"]
    assert tail(log, 5) == []
