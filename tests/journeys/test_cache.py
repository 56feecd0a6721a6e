"""Promise: `tracer.cache()` records remotely what it records locally, and comes home readable by path."""

from typing import Any

import tiny
import torch
from parity import parity

PROMPT = "The Eiffel Tower is in the city of"


def recorded(cache: Any) -> dict[str, Any]:
    """Every output of a cache, by module; nnsight finds the root itself only where the model is."""
    return {path: cache[path].output for path in cache.keys() if "." in path}  # noqa: SIM118 - a view, not a dict


@parity(tiny.GPT2, tiny.LLAMA)
def test_every_module(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote, use_cache=False) as tracer:
        cache = tracer.cache()
    outputs = recorded(cache)
    assert len(outputs) > 20
    return {"outputs": outputs}


@parity(tiny.GPT2)
def test_chosen_modules(model: Any, remote: Any) -> dict[str, Any]:
    chosen = [model.transformer.h[0].mlp, model.transformer.h[2]]
    with model.trace(PROMPT, remote=remote) as tracer:
        cache = tracer.cache(modules=chosen)
    assert sorted(cache.keys()) == ["model.transformer.h.0.mlp", "model.transformer.h.2"]
    return {"outputs": recorded(cache)}


@parity(tiny.GPT2)
def test_modules_by_path(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote) as tracer:
        cache = tracer.cache(modules=["model.transformer.ln_f", "model.lm_head"])
    return {"outputs": recorded(cache)}


@parity(tiny.GPT2)
def test_inputs_too(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote) as tracer:
        cache = tracer.cache(modules=[model.transformer.h[1].mlp], include_inputs=True)
    view = cache["model.transformer.h.1.mlp"]
    return {"output": view.output, "inputs": view.inputs}


@parity(tiny.GPT2)
def test_another_type(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote) as tracer:
        cache = tracer.cache(modules=[model.transformer.h[0]], dtype=torch.float16)
    assert cache["model.transformer.h.0"].output.dtype == torch.float16
    return {"outputs": recorded(cache)}


@parity(tiny.GPT2)
def test_after_an_edit(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote) as tracer:
        cache = tracer.cache(modules=[model.transformer.h[1], model.transformer.h[2]])
        model.transformer.h[1].output[:] = 0
    assert (cache["model.transformer.h.1"].output == 0).all()
    return {"outputs": recorded(cache)}


@parity(tiny.GPT2)
def test_every_step_of_generation(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
        cache = tracer.cache(modules=[model.transformer.h[0]])
    assert len(cache["model.transformer.h.0"].output) == 3
    return {"outputs": recorded(cache)}


@parity(tiny.GPT2)
def test_in_one_invoke(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        with tracer.invoke(PROMPT):
            cache = tracer.cache(modules=[model.transformer.h[0]])
        with tracer.invoke("Two plus two is"):
            logits = model.lm_head.output[:, -1].save()
    return {"outputs": recorded(cache), "logits": logits}
