"""The command as its users run it: a process of its own, with a state folder of its own."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis_server

Interlace = Callable[..., "subprocess.CompletedProcess[str]"]
Until = Callable[[Callable[[], Any]], Any]

DEADLINE = 240.0  # seconds: the machine may be busy

COMMAND = (sys.executable, "-m", "interlace_deploy")


@pytest.fixture
def state_dir(home: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix="d", dir=home))


@pytest.fixture
def environ(state_dir: Path) -> dict[str, str]:
    """An environment in which only this test's state is seen."""
    return {**os.environ, "INTERLACE_STATE_DIR": str(state_dir), "INTERLACE_GATEWAY__PORT": "0"}


@pytest.fixture
def interlace(environ: dict[str, str], tmp_path: Path) -> Interlace:
    """Run the command to its end, in an empty folder."""

    def run(*words: str | Path, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            env=environ | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture
def until() -> Until:
    """Wait for a condition, and give what it gave. A process that it looks at may end meanwhile."""

    def looked(condition: Callable[[], Any]) -> Any:
        try:
            return condition()
        except psutil.NoSuchProcess:
            return None

    def wait(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + DEADLINE
        while not (met := looked(condition)):
            assert time.monotonic() < deadline, f"still not so after {DEADLINE:g} s"
            time.sleep(0.02)
        return met

    return wait


@pytest.fixture
def alive(state_dir: Path) -> Callable[[], list[str]]:
    """Look for the command lines of all processes that name this test's state folder."""

    def look() -> list[str]:
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = " ".join(process.info["cmdline"] or ())
            if str(state_dir) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(words)
        return found

    return look


@pytest.fixture
def nothing_left(alive: Callable[[], list[str]], until: Until) -> Iterator[None]:
    """At the end of the test, no process of its Interlace lives."""
    yield
    until(lambda: not alive())


@pytest.fixture
def redis_url(state_dir: Path) -> Iterator[str]:
    """A Redis that somebody else started."""
    folder = state_dir / "elsewhere"
    folder.mkdir()
    with redis_server.running(folder) as url:
        yield url
