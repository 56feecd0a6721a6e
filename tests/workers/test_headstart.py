"""A process that loads a model before its replica is there: who asks gets it, once, and what nobody takes ends."""

import asyncio
import contextlib
import fcntl
import os
import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from interlace_workers.executors.zygote_process import ZygoteProcess
from interlace_workers.order import Load
from interlace_workers.placement.headstart import head_starts, take
from interlace_workers.spawn import spawn

SECONDS = 120.0


@pytest.fixture
def load(tiny_models: Path) -> Load:
    return Load(str(tiny_models), "text-generation", "float32", trust_remote_code=False, threads=1)


async def ended(process: psutil.Process) -> None:
    async with asyncio.timeout(SECONDS):
        with contextlib.suppress(psutil.NoSuchProcess):  # between the two looks
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.05)


async def test_who_asks_first_gets_it(load: Load) -> None:
    first = spawn()
    with head_starts(first) as ahead:
        place = ahead.place("model-0")
        assert ahead.start(load, place) == first.pid
        taken = await asyncio.to_thread(take, place, load)
        assert taken is not None
        assert taken.pid == first.pid
        assert await asyncio.to_thread(take, place, load) is None
        zygote = ZygoteProcess(taken)
        async with asyncio.timeout(SECONDS):
            loaded = await zygote.loaded()
            assert loaded.n_params > 0
            assert loaded.seconds is not None
            assert loaded.seconds > 0
            child = await zygote.fork()
        child.kill()
        await child.exited
        child.close()
        await zygote.stop()


async def test_one_that_loads_something_else_is_not_taken_and_ends(load: Load) -> None:
    first = spawn()
    process = psutil.Process(first.pid)
    with head_starts(first) as ahead:
        place = ahead.place("model-0")
        ahead.start(load, place)
        assert await asyncio.to_thread(take, place, replace(load, threads=2)) is None
        await ended(process)


async def test_what_nobody_takes_ends(load: Load) -> None:
    first = spawn()
    with head_starts(first) as ahead:
        ahead.start(load, ahead.place("one"))
        second = psutil.Process(ahead.start(load, ahead.place("two")))
        processes = [psutil.Process(first.pid), second]
    for process in processes:
        await ended(process)


async def test_a_place_outlives_what_was_offered_there(load: Load) -> None:
    """A replica is told where to look once, and looks there each time that its model comes back."""
    first = spawn()
    process = psutil.Process(first.pid)
    with head_starts(first) as ahead:
        place = ahead.place("model-0")
        ahead.start(load, place)
        ahead.withdraw(place)
        await ended(process)
        assert await asyncio.to_thread(take, place, load) is None
        replaced = psutil.Process(ahead.start(load, place))
        latest = psutil.Process(ahead.start(load, place))
        await ended(replaced)
        taken = await asyncio.to_thread(take, place, load)
        assert taken is not None
        assert taken.pid == latest.pid
        taken.end.close()
        await ended(latest)


async def test_where_its_folder_has_gone_nothing_is_started(load: Load) -> None:
    with head_starts(spawn()) as ahead:
        place = ahead.place("model-0")
        offered = psutil.Process(ahead.start(load, place))
        shutil.rmtree(place.parent)
        there = set(psutil.Process().children())
        assert ahead.start(load, place) is None
        assert set(psutil.Process().children()) <= there
        await ended(offered)  # which another was to replace


async def test_its_folder_is_locked_for_what_cleans_up_old_ones(load: Load) -> None:
    with head_starts(spawn()) as ahead:
        opened = os.open(ahead.place("model-0").parent, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(opened)


async def test_a_first_process_that_no_model_needs_ends() -> None:
    first = spawn()
    process = psutil.Process(first.pid)
    with head_starts(first) as ahead:
        ahead.spare()
        async with asyncio.timeout(SECONDS):
            while process.is_running():  # until it is buried, too
                await asyncio.sleep(0.05)


def test_where_there_is_nothing_there_is_nothing(load: Load, tmp_path: Path) -> None:
    assert take(tmp_path / "nobody", load) is None
