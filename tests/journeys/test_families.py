"""Promise: whatever its family, a hosted model gives the bits that it gives alone, and shares a forward only where
that changes nothing but the speed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import running
import subprocess_client
import tiny
import tiny_families
import torch
from company import merged, together
from parity import Lab, assert_same
from tiny_families import picture

TOKENS = torch.tensor([[5, 9, 13, 17, 21, 25]])
#: One trace that each model takes: its input, and its keywords.
INPUTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    **{name: ((TOKENS,), {}) for name in tiny_families.ALL},
    tiny_families.T5: ((TOKENS,), {"decoder_input_ids": TOKENS[:, :3]}),
    tiny_families.VIT: ((picture(),), {}),
    tiny_families.LLAVA: (("<image> What is it?",), {"images": [picture()]}),
}
#: Whose traces may share a forward.
SHARE = (
    tiny_families.MAMBA,
    tiny_families.FACTS_MAMBA,
    tiny_families.MAMBA2,
    tiny_families.BAMBA,
    tiny_families.BART,
)


@pytest.fixture
def lab(models: Lab, on_families: running.Running) -> Lab:
    """Both sides of every model here."""
    return models


def everything(model: Any, remote: Any) -> list[torch.Tensor]:
    """What the model and each of its layers give, the layers one by one."""
    arguments, keywords = INPUTS[model.repo_id]
    layers = [module for module in model.modules() if module.path.rpartition(".")[2].isdigit()]
    with model.trace(*arguments, remote=remote, **keywords):
        found = [].save()
        for layer in layers:
            value = layer.output
            found.append(value[0] if isinstance(value, tuple) else value)
        last = model.output[0].save()
    return [*found, last]


@pytest.mark.parametrize("repo_id", tiny_families.ALL, ids=[name.partition("/")[2] for name in tiny_families.ALL])
def test_remote_is_local_bit_for_bit(lab: Lab, repo_id: str) -> None:
    local, remote = everything(lab.local(repo_id), False), everything(lab.client(repo_id), True)
    assert len(local) > 2
    for mine, theirs in zip(local, remote, strict=True):
        assert torch.equal(mine, theirs)


def _read(model: Any, remote: Any) -> tuple[Any, ...]:
    arguments, keywords = INPUTS[model.repo_id]
    with model.trace(*arguments, remote=remote, **keywords) as tracer:
        logits = model.output[0].detach().save()
    return merged(tracer), logits


def _scaled(model: Any, remote: Any) -> tuple[Any, ...]:
    arguments, keywords = INPUTS[model.repo_id]
    layer = next(module for module in model.modules() if module.path.endswith(".1"))
    with model.trace(*arguments, remote=remote, **keywords) as tracer:
        layer.output[0][:] *= 0.5
        logits = model.output[0].detach().save()
    return merged(tracer), logits


def _other(model: Any, remote: Any) -> tuple[Any, ...]:
    arguments, keywords = INPUTS[model.repo_id]
    if arguments and isinstance(arguments[0], torch.Tensor):
        arguments = (arguments[0].flip(1),)
    with model.trace(*arguments, remote=remote, **keywords) as tracer:
        logits = model.output[0].detach().save()
    return merged(tracer), logits


CASES: list[Callable[[Any, Any], tuple[Any, ...]]] = [_read, _scaled, _other, _read]


@pytest.mark.parametrize("repo_id", tiny_families.ALL, ids=[name.partition("/")[2] for name in tiny_families.ALL])
def test_traces_that_wait_together_have_what_they_have_alone(
    lab: Lab, on_families: running.Running, repo_id: str
) -> None:
    local = [case(lab.local(repo_id), False) for case in CASES]
    remote = together(on_families, repo_id, CASES, task=tiny.task_of(repo_id))
    for (_, *mine), (_, *theirs) in zip(remote, local, strict=True):
        assert_same(theirs, mine)
    shared = [size for size, *_ in remote]
    assert max(shared) >= 3 if repo_id in SHARE else shared == [0] * len(CASES)


WITHOUT_HUB = """
import interlace
import numpy
import torch
from nnsight import TransformersModel
from PIL import Image

interlace.add_tasks()
picture = Image.fromarray(numpy.full((24, 20, 3), 90, dtype=numpy.uint8))
inputs = {
    "llava-tiny": (("<image> What is it?",), {"images": [picture]}),
    "shapes-vit-mini": ((picture,), {}),
    "t5-tiny": (("Two plus two is",), {"decoder_input_ids": torch.tensor([[1, 5, 9]])}),
}
for name, (arguments, keywords) in inputs.items():
    model = TransformersModel(f"interlace-tests/{name}")
    with model.trace(*arguments, remote=True, **keywords):
        logits = model.output.logits.save()
    assert not model.dispatched
    print(name, model.task, list(logits.shape))
model = TransformersModel("interlace-tests/llava-tiny")
says = [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]
print(model.processor.apply_chat_template([{"role": "user", "content": says}]))
"""


def test_clients_of_the_gateway_alone_have_every_processor(families_server: running.Running, tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(WITHOUT_HUB)
    closed = "http://127.0.0.1:9"
    environ = {"HF_HOME": str(tmp_path / "home"), "http_proxy": closed, "https_proxy": closed, "no_proxy": "127.0.0.1"}
    said = subprocess_client.run(families_server.url, script, environ=environ).splitlines()
    assert "llava-tiny image-text-to-text [1, 12, 401]" in said
    assert "shapes-vit-mini image-classification [1, 3]" in said
    assert "t5-tiny text-to-text [1, 3, 400]" in said
    assert said[-1] == "user: <image>What?"
