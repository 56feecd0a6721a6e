"""Traces of GPT-2 that every way of running a model must give the same values for."""

from typing import Any

import torch

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


ALL = [reading, editing, generating, differentiating, a_session]
