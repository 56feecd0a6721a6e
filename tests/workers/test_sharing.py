"""Replicas of a model on one machine have its weights once; what one does, and its end, is no other's affair."""

import asyncio
import contextlib
from pathlib import Path

import psutil
import pytest
import torch
from nnsight.modeling.transformers import TransformersModel
from parties import Capture, run
from transformers import AutoTokenizer

from interlace_workers.executors.base import Done
from interlace_workers.executors.sharing import SharingExecutor
from interlace_workers.executors.zygote_process import ZygoteProcess
from interlace_workers.order import Load


@pytest.fixture
def load(tiny_models: Path) -> Load:
    return Load(path=str(tiny_models), task="text-generation", dtype="float32", trust_remote_code=False, threads=1)


def payload_of(folder: Path, seconds: float = 0.0) -> bytes:
    model = TransformersModel(str(folder), task="text-generation", tokenizer=AutoTokenizer.from_pretrained(folder))
    backend = Capture()
    with model.trace("The Eiffel Tower", backend=backend):
        import time

        time.sleep(seconds)
        with torch.no_grad():
            model.lm_head.weight.fill_(0.0)
        logits = model.lm_head.output.detach().save()
    return backend.payload


def zygote_of(executor: SharingExecutor) -> ZygoteProcess:
    assert executor._zygote is not None
    return executor._zygote


async def test_the_second_takes_the_firsts_process_and_outlives_it(
    load: Load, tiny_models: Path, tmp_path: Path
) -> None:
    place = str(tmp_path / "m.share")
    first = SharingExecutor(load, place)
    loaded = await first.start()
    second = SharingExecutor(load, place)
    assert await second.start() == loaded
    pid = zygote_of(first).pid
    assert zygote_of(second).pid == pid
    assert first.holder() == second.holder() == pid

    quick = payload_of(tiny_models)
    for seconds in (4.0, 16.0, 48.0):  # until it is slow, on whatever machine
        running = asyncio.create_task(run(second, payload_of(tiny_models, seconds), tmp_path))
        ran = await run(first, quick, tmp_path)
        assert isinstance(ran.end, Done), ran.end
        if not running.done():
            break
    assert not running.done()
    await first.stop()  # its children end, and the other's go on
    assert psutil.pid_exists(pid)
    saved = (await running).saved
    assert torch.equal(saved["logits"], ran.saved["logits"])
    assert isinstance((await run(second, quick, tmp_path)).end, Done)
    await second.stop()
    async with asyncio.timeout(60):
        with contextlib.suppress(psutil.NoSuchProcess):
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.05)


async def test_two_that_start_together_load_once(load: Load, tmp_path: Path) -> None:
    executors = [SharingExecutor(load, str(tmp_path / "m.share")) for _ in range(2)]
    await asyncio.gather(*(executor.start() for executor in executors))
    assert zygote_of(executors[0]).pid == zygote_of(executors[1]).pid
    for executor in executors:
        await executor.stop()


async def test_who_is_left_shares_with_who_comes(load: Load, tmp_path: Path) -> None:
    """The one that has loaded ends, as a replica that is killed; the weights stay, and are not loaded once more."""
    first, second, third = (SharingExecutor(load, str(tmp_path / "m.share")) for _ in range(3))
    await first.start()
    await second.start()
    pid = zygote_of(first).pid
    await first.stop()
    async with asyncio.timeout(60):
        while second._lock is None:
            await asyncio.sleep(0.05)
    await third.start()
    assert zygote_of(third).pid == zygote_of(second).pid == pid
    await third.stop()
    await second.stop()


async def test_one_that_starts_while_the_host_ends_loads_for_itself(load: Load, tmp_path: Path) -> None:
    first, second = (SharingExecutor(load, str(tmp_path / "m.share")) for _ in range(2))
    assert first._is_host()  # and it never loads
    starting = asyncio.create_task(second.start())
    await asyncio.sleep(1)
    assert second._zygote is None
    await first.stop()
    await starting
    assert zygote_of(second).pid
    await second.stop()


async def test_another_load_takes_nobodys_process(load: Load, tmp_path: Path) -> None:
    place = str(tmp_path / "m.share")
    first = SharingExecutor(load, place)
    await first.start()
    other = SharingExecutor(Load(**{**vars(load), "dtype": "bfloat16"}), place)
    await other.start()
    assert zygote_of(other).pid != zygote_of(first).pid
    await other.stop()
    await first.stop()
