"""Promise: a user's own script, with everything that it defines and imports beside it, runs remotely as it is."""

from pathlib import Path

import running
import subprocess_client

HELPERS = """
import torch

GAIN = 1.5


class Adapter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((64,), GAIN))

    def forward(self, hidden):
        return normalised(hidden) * self.scale


def normalised(hidden):
    return hidden / hidden.norm(dim=-1, keepdim=True)
"""

SCRIPT = """
from dataclasses import dataclass
from enum import Enum

import helpers
import nnsight
import torch
from helpers import normalised
from nnsight import TransformersModel

LAYERS = (0, 2)


class Site(Enum):
    MLP = "mlp"


@dataclass
class Finding:
    layer: int
    norm: float

    def loud(self):
        return f"layer {self.layer}!"


class Detector(torch.nn.Module):
    def forward(self, hidden):
        return torch.relu(normalised(hidden)).sum(-1)


def examine(layer, hidden):
    return Finding(layer, round(hidden.norm().item(), 3))


def case(model, remote):
    detector, adapter = Detector(), helpers.Adapter()
    with model.trace("The Eiffel Tower is in the city of", remote=remote):
        site = Site.MLP.value
        findings = [examine(layer, model.get(f"transformer.h.{layer}.{site}").output) for layer in LAYERS].save()
        model.transformer.h[3].output = adapter(model.transformer.h[3].output)
        detected = detector(model.transformer.h[3].output).detach().save()
    return findings, detected


local = case(TransformersModel("interlace-tests/gpt2-tiny", task="text-generation", dispatch=True), False)
remote = case(TransformersModel("interlace-tests/gpt2-tiny", task="text-generation"), True)
assert remote[0] == local[0], (remote[0], local[0])
assert isinstance(remote[0][0], Finding) and remote[0][1].loud() == "layer 2!"
torch.testing.assert_close(remote[1], local[1])
encoder = TransformersModel("interlace-tests/bert-tiny")
assert encoder.task == "fill-mask", encoder.task  # as the gateway said
assert nnsight.is_model_running("interlace-tests/bert-tiny", task="fill-mask")
with encoder.trace("The capital of France is [MASK].", remote=True):
    shape = nnsight.save(tuple(encoder.output.logits.shape))
assert shape[-1] == 400
print("the same")
"""


def test_a_script_with_a_file_beside_it(ray_server: running.Running, tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text(HELPERS)
    script = tmp_path / "experiment.py"
    script.write_text(SCRIPT)
    assert subprocess_client.run(ray_server.url, script).split()[-2:] == ["the", "same"]
