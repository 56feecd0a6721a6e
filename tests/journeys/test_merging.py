"""Promise: many small traces of yours cost one forward, and each is as if it had been alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import running
import tiny
import tiny_adapters
import torch
from company import merged, together
from nnsight import TransformersModel
from nnsight.intervention.backends.remote import RemoteError
from parity import Lab, assert_same

import interlace

PROMPT = "The Eiffel Tower is in the city of"
OTHER = "When Mary and John went to the store"


def layers(model: Any) -> Any:
    return model.transformer.h if hasattr(model._module, "transformer") else model.model.layers


def read(model: Any, remote: Any) -> tuple[Any, ...]:
    blocks = layers(model)
    with model.trace(PROMPT, remote=remote) as tracer:
        hidden = blocks[1].output.save()
        logits = model.lm_head.output.save()
    return merged(tracer), hidden, logits


def ablate(model: Any, remote: Any) -> tuple[Any, ...]:
    blocks = layers(model)
    with model.trace(PROMPT, remote=remote) as tracer:
        blocks[0].output[:, -1] = 0
        logits = model.lm_head.output[:, -1].save()
    return merged(tracer), logits


def patch(model: Any, remote: Any) -> tuple[Any, ...]:
    blocks = layers(model)
    with model.trace(PROMPT, remote=remote) as tracer:
        blocks[1].output = blocks[1].output.flip(dims=(1,))
        best = model.lm_head.output[0].argmax(dim=-1).tolist().save()
    return merged(tracer), best


def gradient(model: Any, remote: Any) -> tuple[Any, ...]:
    blocks = layers(model)
    with model.trace(PROMPT, remote=remote) as tracer:
        hidden = blocks[1].output
        with model.lm_head.output.sum().backward():
            grad = hidden.grad.save()
    return merged(tracer), grad


def longer(model: Any, remote: Any) -> tuple[Any, ...]:
    blocks = layers(model)
    with model.trace(OTHER, remote=remote) as tracer:
        hidden = blocks[1].output.save()
    return merged(tracer), hidden


def fails(model: Any, remote: Any) -> tuple[Any, ...]:
    blocks = layers(model)
    with pytest.raises((RemoteError, IndexError), match="out of bounds"), model.trace(PROMPT, remote=remote):
        blocks[1].output[:, 99].save()
    return 0, "failed"


CASES = [read, ablate, patch, gradient, longer, fails, read, ablate, patch, longer]


@pytest.mark.parametrize("repo_id", [tiny.GPT2, tiny.LLAMA], ids=["gpt2", "llama"])
def test_each_of_ten_clients_has_what_it_would_have_had_alone(lab: Lab, on_ray: running.Running, repo_id: str) -> None:
    local = [case(lab.local(repo_id), False) for case in CASES]
    remote = together(on_ray, repo_id, CASES)
    for (_, *mine), (_, *theirs) in zip(remote, local, strict=True):
        assert_same(theirs, mine)
    sizes = [size for size, *_ in remote]
    assert sizes[0] == sizes[1] == sizes[2] == sizes[6] >= 6
    assert sizes[4] == sizes[9] == 2
    assert (sizes[3], sizes[5]) == (0, 0)


def test_in_a_session_a_trace_runs_alone_and_is_the_same_bit_for_bit(lab: Lab, on_ray: running.Running) -> None:
    def alone(model: Any, remote: Any) -> tuple[Any, ...]:
        blocks = layers(model)
        with model.session(remote=remote) as session:
            with model.trace(PROMPT):
                hidden = blocks[1].output.save()
        return merged(session), hidden

    found = together(on_ray, tiny.GPT2, [alone] * 4)
    assert [size for size, _ in found] == [0] * 4
    assert all(torch.equal(found[0][1], hidden) for _, hidden in found)


def test_traces_with_one_adapter_share_process_and_forward(lab: Lab, on_ray: running.Running, tmp_path: Path) -> None:
    folders = [tiny_adapters.write(tmp_path / str(seed), tiny.LLAMA, seed) for seed in (1, 2)]
    with interlace.Client(on_ray.url) as client:
        refs = [client.artifacts.upload(folder).ref for folder in folders]

    def with_adapter(number: int, case: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def run(model: Any, remote: Any) -> Any:
            model.peft = refs[number]
            return case(model, remote)

        return run

    cases = [read, ablate, patch, read]
    local = []
    for folder in folders:
        model = TransformersModel(tiny.LLAMA, task="text-generation", peft=str(folder), dispatch=True)
        local.append([case(model, False)[1:] for case in cases])
    for number in (0, 1):  # each by itself, then both in turn
        found = together(on_ray, tiny.LLAMA, [with_adapter(number, case) for case in cases])
        for (_, *mine), theirs in zip(found, local[number], strict=True):
            assert_same(list(theirs), mine)
        assert [size for size, *_ in found] == [4] * 4
    both = [with_adapter(number, case) for number, case in enumerate(cases[:2])]
    found = together(on_ray, tiny.LLAMA, both)
    for number, (size, *mine) in enumerate(found):
        assert_same(list(local[number][number]), mine)
        assert size == 0
