"""Promise: edits that stick to the client's model travel with every trace of it, and never stick to the server's."""

from typing import Any

import tiny
import torch
from parity import parity

PROMPT = "The Eiffel Tower is in the city of"


@parity(tiny.GPT2, tiny.LLAMA)
def test_an_edited_copy(model: Any, remote: Any) -> dict[str, Any]:
    with model.edit() as (_, edited):
        layers = edited.transformer.h if hasattr(edited, "transformer") else edited.model.layers
        layers[1].mlp.output[:] = 0
    with edited.trace(PROMPT, remote=remote):
        changed = edited.lm_head.output.save()
    with model.trace(PROMPT, remote=remote):
        clean = model.lm_head.output.save()
    assert not torch.equal(changed, clean)
    return {"changed": changed, "clean": clean}


@parity(tiny.GPT2)
def test_an_edit_in_place_and_its_end(model: Any, remote: Any) -> dict[str, Any]:
    with model.edit(inplace=True):
        model.transformer.h[0].output[:, -1] = 1
    try:
        with model.trace(PROMPT, remote=remote):
            changed = model.lm_head.output.save()
    finally:
        model.clear_edits()
    with model.trace(PROMPT, remote=remote):
        clean = model.lm_head.output.save()
    assert not torch.equal(changed, clean)
    return {"changed": changed, "clean": clean}


@parity(tiny.GPT2)
def test_edits_on_edits(model: Any, remote: Any) -> dict[str, Any]:
    with model.edit() as (_, first):
        first.transformer.h[0].output *= 2
    with first.edit() as (_, second):
        second.transformer.h[2].output *= 3
    with second.trace(PROMPT, remote=remote):
        both = second.lm_head.output.save()
    with first.trace(PROMPT, remote=remote):
        one = first.lm_head.output.save()
    return {"both": both, "one": one}


@parity(tiny.GPT2)
def test_an_edit_with_a_tensor_of_the_caller(model: Any, remote: Any) -> dict[str, Any]:
    vector = torch.linspace(-2, 2, 64)
    with model.edit() as (_, edited):
        edited.transformer.h[1].output += vector
    with edited.trace(PROMPT, remote=remote):
        hidden = edited.transformer.h[1].output.save()
        logits = edited.lm_head.output.save()
    return {"hidden": hidden, "logits": logits}


@parity(tiny.GPT2)
def test_an_edit_at_every_step_of_generation(model: Any, remote: Any) -> dict[str, Any]:
    vector = torch.linspace(-3, 3, 64)
    with model.edit() as (_, edited):
        for _ in edited.all():
            edited.transformer.h[2].output[:, -1] += vector
    with edited.generate(PROMPT, remote=remote, max_new_tokens=4, min_new_tokens=4, do_sample=False) as tracer:
        ids = tracer.result.save()
    return {"ids": ids}


@parity(tiny.GPT2)
def test_an_edit_with_invokes(model: Any, remote: Any) -> dict[str, Any]:
    with model.edit() as (_, edited):
        edited.transformer.h[0].mlp.output[:] = 0
    with edited.trace(remote=remote) as tracer:
        with tracer.invoke(PROMPT):
            one = edited.lm_head.output[:, -1].save()
        with tracer.invoke("Two plus two is"):
            two = edited.lm_head.output[:, -1].save()
    return {"one": one, "two": two}


@parity(tiny.GPT2)
def test_an_edit_in_a_session(model: Any, remote: Any) -> dict[str, Any]:
    with model.edit() as (_, edited):
        edited.transformer.h[3].output[:] = 0.5
    with model.session(remote=remote):
        with edited.trace(PROMPT):
            changed = edited.lm_head.output.save()
        with model.trace(PROMPT):
            clean = model.lm_head.output.save()
    return {"changed": changed, "clean": clean}
