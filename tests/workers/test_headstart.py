"""A process that loads a model before its replica is there: who asks gets it, once, and what nobody takes ends."""

import asyncio
import contextlib
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
        place = ahead.start(load)
        taken = await asyncio.to_thread(take, place, load)
        assert taken is not None
        assert taken.pid == first.pid
        assert await asyncio.to_thread(take, place, load) is None
        zygote = ZygoteProcess(taken)
        async with asyncio.timeout(SECONDS):
            assert (await zygote.loaded()).n_params > 0
            child = await zygote.fork()
        child.kill()
        await child.exited
        child.close()
        await zygote.stop()


async def test_one_that_loads_something_else_is_not_taken_and_ends(load: Load) -> None:
    first = spawn()
    process = psutil.Process(first.pid)
    with head_starts(first) as ahead:
        place = ahead.start(load)
        assert await asyncio.to_thread(take, place, replace(load, threads=2)) is None
        await ended(process)


async def test_what_nobody_takes_ends(load: Load) -> None:
    first = spawn()
    with head_starts(first) as ahead:
        ahead.start(load)
        second = psutil.Process(int(ahead.start(load).name))
        processes = [psutil.Process(first.pid), second]
    for process in processes:
        await ended(process)


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
