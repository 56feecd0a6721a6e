"""Promise: a request leaves nothing behind: the next one meets the model, torch and Python as if it were the first."""

import contextlib
import linecache
from collections.abc import Callable
from typing import Any

import nnsight
import pytest
import tiny
import torch
from nnsight.intervention.backends.remote import RemoteError
from parity import Lab

PROMPT = "The Eiffel Tower is in the city of"
Vandal = Callable[[Any], None]


@pytest.fixture
def client(lab: Lab) -> Any:
    return lab.client(tiny.GPT2)


def logits_of(client: Any) -> torch.Tensor:
    with client.trace(PROMPT, remote=True):
        logits = client.lm_head.output.detach().save()
    return logits


def weights_zeroed(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        with torch.no_grad():
            for parameter in client._module.parameters():
                parameter.zero_()
        changed = client.lm_head.output.abs().max().save()
    assert changed == 0


def gradients_left(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        client.lm_head.output.sum().backward()


def torch_patched(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        torch.nn.functional.layer_norm = lambda value, *rest, **named: value * 0
        torch.Tensor.softmax = None
        changed = client.transformer.h[0].ln_1.output.abs().max().save()
    assert changed == 0


def configuration_changed(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        client.config.layer_norm_epsilon = 1e9
        client.transformer.h[0].ln_1._module.eps = 1e9
        client.transformer.ln_f.output.save()


def default_type_changed(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        torch.set_default_dtype(torch.float64)
        kind = nnsight.save(str(torch.zeros(1).dtype))
    assert kind == "torch.float64"


def gradients_switched_off(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        torch.set_grad_enabled(False)
        for parameter in client._module.parameters():
            parameter.requires_grad_(False)


def training_switched_on(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        client._module.train()
        for module in client._module.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.9
        client.lm_head.output.save()


def hooks_left(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        client.lm_head._module.register_forward_hook(lambda *_: torch.zeros(1, 1, 400))
        torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)


def layers_removed(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        del client._module.transformer.h[2:]
        client._module.lm_head = torch.nn.Identity()


def tokenizer_spoiled(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        client.tokenizer.padding_side = "right"
        client.tokenizer.add_tokens(["Tower"])


def builtins_patched(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        import builtins
        import sys

        builtins.len = lambda thing: 0
        builtins.isinstance = lambda *_: False
        sys.modules["torch"] = None


def environment_changed(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        import os

        os.environ["OMP_NUM_THREADS"] = "64"
        os.chdir("/")
        torch.set_num_threads(7)


@pytest.mark.parametrize(
    "vandal",
    [
        weights_zeroed,
        gradients_left,
        torch_patched,
        configuration_changed,
        default_type_changed,
        gradients_switched_off,
        training_switched_on,
        hooks_left,
        layers_removed,
        tokenizer_spoiled,
        builtins_patched,
        environment_changed,
    ],
    ids=lambda vandal: vandal.__name__,
)
def test_the_next_request_gives_the_same_bits(client: Any, vandal: Vandal) -> None:
    before = logits_of(client)
    # What a spoiled Python does to the rest of that request is its own affair.
    with contextlib.suppress(*((RemoteError,) if vandal is builtins_patched else ())):
        vandal(client)
    assert torch.equal(logits_of(client), before)


def test_gradients_are_still_wanted_afterwards(client: Any) -> None:
    gradients_switched_off(client)
    with client.trace(PROMPT, remote=True):
        hidden = client.transformer.h[0].output
        with client.lm_head.output.sum().backward():
            gradient = hidden.grad.save()
        none_left = nnsight.save(client.transformer.h[0].mlp.c_fc.weight.grad is not None)
    assert gradient.abs().sum() > 0
    assert none_left


def test_attributes_of_one_request_are_not_seen_by_the_next(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        torch.smuggled = client.transformer.h[0].output
        client._module.smuggled = 7
    with client.trace(PROMPT, remote=True):
        found = nnsight.save((hasattr(torch, "smuggled"), hasattr(client._module, "smuggled")))
    assert found == (False, False)


def sampled(client: Any, seed: int | None) -> list[int]:
    with client.generate(PROMPT, remote=True, max_new_tokens=12, min_new_tokens=12, do_sample=True) as tracer:
        if seed is not None:
            torch.manual_seed(seed)
        ids = tracer.result.save()
    return list(ids[0].tolist())


def test_unseeded_samples_differ(client: Any) -> None:
    assert len({tuple(sampled(client, None)) for _ in range(3)}) == 3


def test_seeded_samples_agree(client: Any) -> None:
    assert sampled(client, 5) == sampled(client, 5)
    assert sampled(client, 5) != sampled(client, 6)


def test_python_and_numpy_draw_anew_each_time(client: Any) -> None:
    draws = []
    for _ in range(2):
        with client.trace(PROMPT, remote=True):
            import random

            import numpy

            draw = nnsight.save((random.random(), float(numpy.random.rand()), float(torch.rand(1))))
        draws.append(draw)
    assert all(one != two for one, two in zip(*draws, strict=True))


SCRIPT = """
def run(model):
    with model.session(remote=True):
        with model.trace("The Eiffel Tower is in the city of"):
            value = model.transformer.h[{layer}].output[0, 0, 0]
        value = value.detach().save()
    return value
"""


def test_two_scripts_of_one_name_do_not_get_each_others_code(lab: Lab, client: Any) -> None:
    """Notebooks call their cells alike: nnsight finds code by file name and line, and must find this request's."""
    local = lab.local(tiny.GPT2)
    with local.trace(PROMPT):
        expected = [layer.output[0, 0, 0].detach() for layer in local.transformer.h].save()
    found = []
    for layer in (0, 3):
        name, source = "<ipython-input-1>", SCRIPT.format(layer=layer)
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        nnsight.tracing.globals.SOURCES.pop(name, None)
        nnsight.tracing.globals.BLOCKS.clear()
        scope: dict[str, Any] = {}
        exec(compile(source, name, "exec"), scope)
        found.append(scope["run"](client))
    torch.testing.assert_close(found, [expected[0], expected[3]])
