"""Replicas as plain child processes: what ends is started again, and what does not run is the first to go."""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from interlace_state.config import Config
from interlace_state.config_file import load
from interlace_state.models import ModelState, Replica
from interlace_state.store import State, open_state
from interlace_workers.placement.place import Placement, place
from interlace_workers.runtimes import process
from interlace_workers.runtimes.process import ProcessHost, hosting

SECONDS = 120.0


@pytest.fixture
def file(redis_url: str, tmp_path: Path, tiny_models: Path) -> Path:
    shutil.copytree(tiny_models, tmp_path / "own")
    file = tmp_path / "interlace.yaml"
    model = {"source": str(tmp_path / "own"), "repo_id": "lab/own", "threads": 1}
    settings = {"redis": {"url": redis_url, "prefix": f"{tmp_path.name}:"}, "state_dir": str(tmp_path / "state")}
    file.write_text(yaml.safe_dump({**settings, "runtime": "process", "models": [model]}))
    return file


@pytest.fixture
def config(file: Path) -> Config:
    return load(file, os.environ)


@pytest.fixture
async def state(config: Config) -> AsyncIterator[State]:
    async with open_state(config) as state:
        yield state


@pytest.fixture
async def placement(config: Config, state: State) -> Placement:
    """As of a machine where replicas of a model share nothing: each loads it for itself."""
    (found,) = await place(config, state, lambda _: None)
    return found


@pytest.fixture
async def host(config: Config, file: Path, state: State) -> AsyncIterator[ProcessHost]:
    async with hosting(config, file, state) as host:
        yield host


async def ready(state: State, placement: Placement, count: int) -> dict[str, Replica]:
    """The replicas by their names, once so many are ready."""
    async with asyncio.timeout(SECONDS):
        while True:
            there = (await state.models.find(placement.key)).replicas
            found = {replica.id: replica for replica in there if replica.state is ModelState.READY}
            if len(found) == count:
                return found
            await asyncio.sleep(0.1)


async def printed(capfd: pytest.CaptureFixture[str], text: str) -> None:
    seen = ""
    async with asyncio.timeout(SECONDS):
        while text not in seen:
            await asyncio.sleep(0.1)
            seen += capfd.readouterr().out


async def test_one_that_could_not_load_goes_before_one_that_runs_and_is_tried_again(
    host: ProcessHost,
    state: State,
    placement: Placement,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await host.keep([(placement, 2)])
    both = await ready(state, placement, 2)
    first, second = sorted(both)
    (tmp_path / "own").rename(tmp_path / "away")
    os.kill(both[first].pid, signal.SIGKILL)
    await printed(capfd, f"replica {first} ended with code {process.LOAD_FAILED}")

    await host.keep([(placement, 1)])
    async with asyncio.timeout(SECONDS):
        while await host.live(placement.key) > 1:
            await asyncio.sleep(0.1)
    os.kill(both[second].pid, 0)  # which is there

    monkeypatch.setattr(process, "_LONGEST_PAUSE", 0.1)
    await host.keep([(placement, 2)])
    await printed(capfd, f"replica {first} ended with code {process.LOAD_FAILED}")
    assert (await state.models.find(placement.key)).card.failure is None  # the other has it
    (tmp_path / "away").rename(tmp_path / "own")
    async with asyncio.timeout(SECONDS):
        while (await ready(state, placement, 2))[first].pid == both[first].pid:  # whose sign of life is left
            await asyncio.sleep(0.1)


async def test_one_that_cannot_be_started_is_started_later(
    host: ProcessHost, state: State, placement: Placement, capfd: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    try:
        with contextlib.suppress(OSError):  # numbers below the highest may be free
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        await host.keep([(placement, 1)])
        await printed(capfd, "-0 could not be started: [Errno 24] Too many open files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    await ready(state, placement, 1)
