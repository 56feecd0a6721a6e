"""A client that has seen how fast its link is says with each request whether its result shall be compressed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gateway_process
import pytest
import tiny
import torch
from gateway_process import Gateway, Worker, saved, until
from nnsight import CONFIG, TransformersModel
from nnsight.modeling import huggingface
from wire import Wire, cut

import interlace
from interlace import _link
from interlace.protocol.model import ModelKey
from interlace_state.store import open_state

KEY = ModelKey(repo_id=tiny.GPT2)
NO_LINK, ANY_LINK = float("inf"), 0.0  # is as fast, in bytes a second
LARGE = torch.randn(_link.LARGE // 3, generator=torch.Generator().manual_seed(1))  # compressed, too
SMALL = torch.arange(500_000.0)  # over what comes by socket


@pytest.fixture
async def worker(gateway: Gateway) -> AsyncIterator[Worker]:
    async with open_state(gateway.config) as state:
        await gateway_process.publish(state, gateway.config, KEY)
        yield Worker(state, KEY)
        await state.queue.fail_all(KEY, "The test has ended.")


@pytest.fixture
def model(gateway: Gateway, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Without weights. Nothing is known of the gateway's link."""
    monkeypatch.setattr(CONFIG.API, "HOST", gateway.url)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setattr(_link, "_fast", {})
    monkeypatch.setitem(huggingface._ID_CACHE, tiny.GPT2, tiny.GPT2)
    return TransformersModel(tiny.GPT2, task="text-generation")


def traced(url: str, model: Any) -> torch.Tensor:
    """What a block saves, by a client of its own."""
    with interlace.connect(url) as client, model.trace("a b", backend=client.on(model)):
        found = model.lm_head.output.save()
    return found  # type: ignore[no-any-return]


async def wants_it_raw(worker: Worker, gateway: Gateway, model: Any, value: torch.Tensor) -> bool:
    """Whether a trace whose result is ``value`` asks for it as it is."""
    waits = asyncio.create_task(asyncio.to_thread(traced, gateway.url, model))
    lease = await worker.start()
    await worker.complete(lease, saved(found=value))
    assert torch.equal(await waits, value)
    assert lease.job.compress
    return lease.job.raw


async def test_results_are_compressed_until_the_link_is_faster(
    gateway: Gateway, worker: Worker, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_link, "FAST", ANY_LINK)
    assert not await wants_it_raw(worker, gateway, model, SMALL)
    assert not await wants_it_raw(worker, gateway, model, LARGE)  # a small download tells nothing
    assert await wants_it_raw(worker, gateway, model, SMALL)
    monkeypatch.setattr(_link, "FAST", NO_LINK)
    assert await wants_it_raw(worker, gateway, model, SMALL)
    assert await wants_it_raw(worker, gateway, model, LARGE)
    assert not await wants_it_raw(worker, gateway, model, SMALL)


async def test_a_download_that_broke_counts_from_there(
    gateway: Gateway, worker: Worker, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_link, "FAST", ANY_LINK)
    wire = Wire(gateway)
    try:
        waits = asyncio.create_task(asyncio.to_thread(traced, wire.url, model))
        await worker.complete(await worker.start(), saved(found=LARGE))
        await asyncio.to_thread(until, lambda: wire.answered > _link.LARGE // 2, "half of it")
        await cut(wire, more=1)
        assert torch.equal(await waits, LARGE)
    finally:
        wire.close()
    assert not _link.is_fast(wire.url)  # the rest was no large download


def test_the_last_large_download_says_what_a_link_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_link, "_fast", {})
    gigabit, lan = 118e6, 1.1e9  # bytes a second
    assert not _link.is_fast("http://a")
    for rate, is_fast in ((gigabit, False), (lan, True), (gigabit, False), (lan, True)):
        _link.downloaded("http://a", _link.LARGE, _link.LARGE / rate)
        assert _link.is_fast("http://a") == is_fast
    _link.downloaded("http://a", _link.LARGE - 1, 1000.0)
    assert _link.is_fast("http://a")
    assert not _link.is_fast("http://b")
