"""Jobs that share a child and a forward: each has what it would have had alone, or has run alone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import tiny
import torch
from nnsight.modeling.transformers import TransformersModel
from parties import Capture, run, settled, together

from interlace_workers.executors import proc
from interlace_workers.executors.base import Done, Started
from interlace_workers.executors.party import MergingExecutor
from interlace_workers.order import Load

pytestmark = pytest.mark.asyncio(loop_scope="module")
#: Of one length, and one that is longer.
TEXTS = [[5, 9, 13, 17, 21, 25], [6, 7, 8, 9, 10, 11], [300, 2, 77, 4, 120, 6], [9, 9, 9, 9, 9, 9]]
LONG = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
ABSOLUTE = 1e-5


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[tiny.GPT2, tiny.LLAMA])
async def hosted(request: pytest.FixtureRequest, tiny_models: Path, home: Path) -> AsyncIterator[tuple[Any, Any]]:
    """An executor of a model with absolute or with rotary positions, and a client of it."""
    (path,) = (home / "hf" / "hub" / f"models--{request.param.replace('/', '--')}" / "snapshots").iterdir()
    executor = MergingExecutor(
        Load(
            path=str(path),
            task="text-generation",
            dtype="float32",
            trust_remote_code=False,
            threads=1,
            isolation="required",
        )
    )
    await executor.start()
    yield executor, TransformersModel(request.param, task="text-generation")
    await executor.stop()


def layers_of(client: Any) -> Any:
    return client.transformer.h if hasattr(client._module, "transformer") else client.model.layers


Block = Callable[[Any, Any], bytes]


def read(client: Any, tokens: Any) -> bytes:
    layers, backend = layers_of(client), Capture()
    with client.trace(tokens, backend=backend) as tracer:
        before = layers[0].input.save()
        hidden = layers[1].output.save()
        last = client.lm_head.output[:, -1].save()
        top = last.topk(3).indices.tolist().save()
        whole = tracer.result.logits.save()
    return backend.payload


def ablate(client: Any, tokens: Any) -> bytes:
    layers, backend = layers_of(client), Capture()
    with client.trace(tokens, backend=backend):
        layers[1].output[:, -1] *= 0
        after = layers[1].output.save()
        logits = client.lm_head.output.save()
    return backend.payload


def steer(client: Any, tokens: Any) -> bytes:
    layers, backend = layers_of(client), Capture()
    direction = torch.linspace(-1, 1, 64)
    with client.trace(tokens, backend=backend):
        for layer in layers[:2]:
            layer.output = layer.output + 3 * direction
        kept = {"norm": layers[1].output.norm(dim=-1), "shape": tuple(layers[1].output.shape)}.save()
        logits = client.lm_head.output.save()
        print(f"steered {len(layers)} layers")
    return backend.payload


def lens(client: Any, tokens: Any) -> bytes:
    import torch.nn.functional as F

    layers, backend = layers_of(client), Capture()
    with client.trace(tokens, backend=backend):
        seen = [F.softmax(client.lm_head(layer.output)[:, -1], dim=-1) for layer in layers]
        lens = torch.stack(seen).save()
    return backend.payload


def stop(client: Any, tokens: Any) -> bytes:
    layers, backend = layers_of(client), Capture()
    with client.trace(tokens, backend=backend) as tracer:
        early = layers[0].output.save()
        tracer.stop()
    return backend.payload


def replace(client: Any, tokens: Any) -> bytes:
    layers, backend = layers_of(client), Capture()
    with client.trace(tokens, backend=backend):
        layers[0].output = torch.zeros_like(layers[0].output)
        zeros = layers[0].output.save()
        logits = client.lm_head.output.save()
    return backend.payload


MERGED: list[Block] = [read, ablate, steer, lens, stop, replace]


def raises(client: Any, tokens: Any) -> bytes:
    layers, backend = layers_of(client), Capture()
    with client.trace(tokens, backend=backend):
        hidden = layers[0].output.save()
        print("before the error")
        hidden[:, 99]
    return backend.payload


def backward(client: Any, tokens: Any) -> bytes:
    layers, backend = layers_of(client), Capture()
    with client.trace(tokens, backend=backend):
        hidden = layers[1].output
        with client.lm_head.output.sum().backward():
            grad = hidden.grad.save()
    return backend.payload


def imports(client: Any, tokens: Any) -> bytes:
    layers, backend = layers_of(client), Capture()
    with client.trace(tokens, backend=backend):
        import math

        hidden = (layers[0].output * math.e).save()
    return backend.payload


def whole_inputs(client: Any, tokens: Any) -> bytes:
    layers, backend = layers_of(client), Capture()
    with client.trace(tokens, backend=backend):
        inputs = layers[0].inputs.save()
    return backend.payload


def crashes(client: Any, tokens: Any) -> bytes:
    backend = Capture()
    with client.trace(tokens, backend=backend):
        exec("import os; os._exit(7)")
    return backend.payload


def same(mine: Any, other: Any) -> bool:
    """Whether two saved values are of one make, and equal within the tolerance of batching."""
    if type(mine) is not type(other):
        return False
    if isinstance(mine, torch.Tensor):
        alike = (mine.shape, mine.dtype, mine.requires_grad) == (other.shape, other.dtype, other.requires_grad)
        return alike and bool(
            torch.allclose(mine, other, rtol=0, atol=ABSOLUTE * max(1.0, float(other.detach().abs().max())))
        )
    if isinstance(mine, dict):
        return mine.keys() == other.keys() and all(same(mine[key], other[key]) for key in mine)
    if isinstance(mine, (list, tuple)):
        return len(mine) == len(other) and all(map(same, mine, other))
    return bool(mine == other)


async def test_each_has_what_it_would_have_had_alone(hosted: Any, tmp_path: Path) -> None:
    executor, client = hosted
    payloads = [block(client, TEXTS[number % 4]) for number, block in enumerate(MERGED + MERGED)]
    alone = [await run(executor, payload, tmp_path) for payload in payloads]
    merged = await together(executor, payloads, tmp_path)
    assert [one.merged for one in merged] == [len(payloads)] * len(payloads)
    for one, other in zip(merged, alone, strict=True):
        tensors = [value for value in one.saved.values() if isinstance(value, torch.Tensor)]
        assert all(value.untyped_storage().nbytes() == value.numel() * value.element_size() for value in tensors)
        assert same(one.saved, other.saved)
        assert one.printed == other.printed
        assert sum(isinstance(happening, Started) for happening in one.happenings) == 1
    assert merged[2].printed == [f"steered {len(layers_of(client))} layers"]


@pytest.mark.parametrize("block", [raises, backward, imports, whole_inputs, crashes])
async def test_what_cannot_share_runs_alone_and_spoils_nobody(hosted: Any, tmp_path: Path, block: Block) -> None:
    executor, client = hosted
    alone = await run(executor, block(client, TEXTS[0]), tmp_path)
    first, odd, last = await together(
        executor, [read(client, TEXTS[1]), block(client, TEXTS[0]), ablate(client, TEXTS[2])], tmp_path
    )
    assert odd.merged == 0
    assert first.merged == last.merged >= 2
    assert type(odd.end) is type(alone.end)
    if isinstance(alone.end, Done):
        assert repr(odd.saved) == repr(alone.saved)
    else:
        assert odd.error == alone.error
    assert odd.printed == alone.printed
    assert same(first.saved, (await run(executor, read(client, TEXTS[1]), tmp_path)).saved)


async def test_traces_of_other_lengths_have_a_forward_of_their_own(hosted: Any, tmp_path: Path) -> None:
    executor, client = hosted
    payloads = [read(client, tokens) for tokens in (TEXTS[0], LONG, TEXTS[1], "The Eiffel Tower", TEXTS[2])]
    merged = await together(executor, payloads, tmp_path)
    assert [one.merged for one in merged] == [3, 1, 3, 1, 3]
    for one, payload in zip(merged, payloads, strict=True):
        assert same(one.saved, (await run(executor, payload, tmp_path)).saved)


async def test_a_job_of_several_prompts_keeps_its_rows(hosted: Any, tmp_path: Path) -> None:
    executor, client = hosted
    payloads = [read(client, TEXTS[:3]), read(client, TEXTS[3]), ablate(client, [TEXTS[2], TEXTS[0]])]
    merged = await together(executor, payloads, tmp_path)
    assert [one.merged for one in merged] == [3, 3, 3]
    for one, payload in zip(merged, payloads, strict=True):
        assert same(one.saved, (await run(executor, payload, tmp_path)).saved)


def endless(client: Any, tokens: Any) -> bytes:
    """A block that passes every check, and takes minutes."""
    layers, backend = layers_of(client), Capture()
    big = torch.rand(600, 600)
    with client.trace(tokens, backend=backend):
        hidden = layers[0].output.save()
        for _ in range(9000):
            big = torch.matmul(big, big).clamp(0, 1)
    return backend.payload


def counts_layers(client: Any, tokens: Any) -> bytes:
    """Reads the last layer, so that it sees whether the forward went on for it."""
    layers, backend = layers_of(client), Capture()
    with client.trace(tokens, backend=backend) as tracer:
        last = layers[-1].output.save()
        logits = tracer.result.logits.save()
    return backend.payload


async def test_those_who_stop_early_end_nobody_elses_forward(hosted: Any, tmp_path: Path) -> None:
    executor, client = hosted
    payloads = [stop(client, TEXTS[0]), counts_layers(client, TEXTS[1]), stop(client, TEXTS[2])]
    merged = await together(executor, payloads, tmp_path)
    assert [one.merged for one in merged] == [3, 3, 3]
    for one, payload in zip(merged, payloads, strict=True):
        assert same(one.saved, (await run(executor, payload, tmp_path)).saved)
    all_stop = await together(executor, [payloads[0], payloads[2]], tmp_path)
    for one, payload in zip(all_stop, (payloads[0], payloads[2]), strict=True):
        assert same(one.saved, (await run(executor, payload, tmp_path)).saved)


async def test_one_over_its_time_is_stopped_and_the_others_run_apart(hosted: Any, tmp_path: Path) -> None:
    executor, client = hosted
    payloads = [read(client, TEXTS[0]), endless(client, TEXTS[1]), ablate(client, TEXTS[2])]
    limits: list[dict[str, float]] = [{}, {"wall_seconds": 4.0}, {}]
    parts = list(zip(executor.party(3), payloads, limits, strict=True))
    ends = await asyncio.gather(*(run(one[0], one[1], tmp_path, **one[2]) for one in parts), return_exceptions=True)
    first, slow, last = [
        await settled(executor, end, payload, tmp_path, **limit)
        for end, (_, payload, limit) in zip(ends, parts, strict=True)
    ]
    assert "ran for 4 s, its limit" in slow.error
    assert same(first.saved, (await run(executor, payloads[0], tmp_path)).saved)
    assert same(last.saved, (await run(executor, payloads[2], tmp_path)).saved)


async def test_one_that_is_cancelled_is_stopped_at_once_and_the_others_run_apart(hosted: Any, tmp_path: Path) -> None:
    executor, client = hosted
    payloads = [read(client, TEXTS[0]), endless(client, TEXTS[1]), ablate(client, TEXTS[2])]
    seats = executor.party(3)
    running = [asyncio.create_task(run(seat, one, tmp_path)) for seat, one in zip(seats, payloads, strict=True)]
    await asyncio.sleep(1.0)
    running[1].cancel()
    await asyncio.wait({running[1]}, timeout=60)
    assert running[1].cancelled()
    for number in (0, 2):
        (ended,) = await asyncio.gather(running[number], return_exceptions=True)
        ran = await settled(executor, ended, payloads[number], tmp_path)
        assert same(ran.saved, (await run(executor, payloads[number], tmp_path)).saved)


async def test_nobody_waits_for_a_job_that_does_not_come(hosted: Any, tmp_path: Path) -> None:
    executor, client = hosted
    seats = executor.party(3)
    running = [asyncio.create_task(run(seat, read(client, TEXTS[0]), tmp_path)) for seat in seats[:2]]
    await asyncio.sleep(0.1)
    assert not any(one.done() for one in running)
    seats[2].give_up()
    seats[2].give_up()
    assert [(await one).merged for one in running] == [2, 2]
    (only, *others) = executor.party(3)
    for seat in others:
        seat.give_up()
    assert (await run(only, read(client, TEXTS[0]), tmp_path)).merged == 0


async def test_a_result_over_its_limit_names_the_limit(hosted: Any, tmp_path: Path) -> None:
    executor, client = hosted
    payloads = [read(client, TEXTS[0]), read(client, TEXTS[1])]
    for ran in await together(executor, payloads, tmp_path, result_bytes=1000):
        assert "limits.result_bytes" in ran.error


async def test_a_payload_that_is_none_is_refused_alone(hosted: Any, tmp_path: Path) -> None:
    executor, client = hosted
    first, odd, last = await together(executor, [read(client, TEXTS[0]), b"nonsense", read(client, TEXTS[1])], tmp_path)
    assert "zstd" in odd.error
    assert first.merged == last.merged == 2


async def test_its_cost_is_its_part(hosted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "has_idle_core", lambda: False)  # the one alone has rehearsed nothing
    executor, client = hosted
    runs = await together(executor, [read(client, TEXTS[number % 4]) for number in range(8)], tmp_path)
    alone = await run(executor, read(client, TEXTS[0]), tmp_path)
    assert isinstance(alone.end, Done)
    assert alone.end.cost.merged is None
    for one in runs:
        assert isinstance(one.end, Done)
        assert 0 < one.end.cost.cpu_seconds < alone.end.cost.cpu_seconds
        assert [step.name for step in one.end.steps] == ["fork", "deserialize", "forward", "serialize"]


async def test_alone_it_is_the_same_bit_for_bit(hosted: Any, tmp_path: Path) -> None:
    executor, client = hosted
    payload = read(client, TEXTS[2])
    first, second = [(await run(executor, payload, tmp_path)).saved for _ in range(2)]
    assert all(torch.equal(first[name], second[name]) for name in ("before", "hidden", "last", "whole"))


async def test_the_next_job_sees_the_model_as_it_was(hosted: Any, tmp_path: Path) -> None:
    executor, client = hosted
    before = (await run(executor, read(client, TEXTS[0]), tmp_path)).saved
    await together(executor, [ablate(client, TEXTS[0]), replace(client, TEXTS[0])], tmp_path)
    after = (await run(executor, read(client, TEXTS[0]), tmp_path)).saved
    assert all(torch.equal(before[name], after[name]) for name in ("before", "hidden", "last", "whole"))
