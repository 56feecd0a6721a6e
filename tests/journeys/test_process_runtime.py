"""Promise: the replica is the same program without Ray: plain processes give the same values."""

from typing import Any

import nnsight
import pytest
import running
import tiny
import torch
from nnsight import TransformersModel
from nnsight.intervention.backends.remote import RemoteBackend
from parity import Case, Lab, assert_same
from transformers import AutoTokenizer

PROMPT = "The Eiffel Tower is in the city of"


def reading(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[1].output.save()
        best = model.lm_head.output[0, -1].argmax().save()
    return {"hidden": hidden, "best": best}


def editing(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        with tracer.invoke(PROMPT):
            model.transformer.h[0].mlp.output[:] = 0
            edited = model.lm_head.output[:, -1].save()
        with tracer.invoke("Two plus two is"):
            clean = model.lm_head.output[:, -1].save()
    return {"edited": edited, "clean": clean}


def generating(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, max_new_tokens=4, min_new_tokens=4, do_sample=True) as tracer:
        torch.manual_seed(1)
        ids = tracer.result.save()
    return {"ids": ids}


def differentiating(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[0].output
        with model.lm_head.output.mean().backward():
            gradient = hidden.grad.save()
    return {"gradient": gradient}


def a_session(model: Any, remote: Any) -> dict[str, Any]:
    with model.session(remote=remote):
        seen = [].save()
        for index in range(3):
            with model.trace(PROMPT):
                norm = model.transformer.h[index].output.norm()
            seen.append(norm)
    return {"seen": seen}


@pytest.mark.parametrize("case", [reading, editing, generating, differentiating, a_session], ids=lambda c: c.__name__)
def test_the_same_values(case: Case, models: Lab, on_processes: running.Running) -> None:
    assert_same(case(models.local(tiny.GPT2), False), case(models.client(tiny.GPT2), True))


def test_a_model_from_a_plain_folder(models: Lab, on_processes: running.Running, tiny_models: Any) -> None:
    """What a lab trained itself: the client builds it from the folder, the server knows it by a name."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models)
    local = TransformersModel(str(tiny_models), task="text-generation", tokenizer=tokenizer, dispatch=True)
    client = TransformersModel(str(tiny_models), task="text-generation", tokenizer=tokenizer)
    key = models.client(tiny.GPT2).to_model_key().replace(tiny.GPT2, tiny.LAB)
    with local.trace(PROMPT):
        expected = local.lm_head.output.detach().save()
    with client.trace(PROMPT, backend=RemoteBackend(key, env=client._remoteable_get_env())):
        logits = client.lm_head.output.detach().save()
    torch.testing.assert_close(logits, expected)


def test_what_failed_to_load_is_told(on_processes: running.Running) -> None:
    status = nnsight.status()
    assert status[tiny.GPT2]["state"] == "RUNNING"
    assert status[tiny.LAB]["state"] == "RUNNING"
    assert tiny.BROKEN not in status or status[tiny.BROKEN]["state"] == "UNHEALTHY"
    assert any(tiny.BROKEN in line for line in on_processes.lines)
