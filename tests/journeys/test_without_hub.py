"""Promise: a client with an empty cache and no network but the gateway traces a model that no hub has."""

import os
from pathlib import Path

import pytest
import running
import subprocess_client
from nnsight import TransformersModel
from transformers import AutoTokenizer

SCRIPT = """
import nnsight
import torch
from nnsight import TransformersModel

name = "interlace-lab/own-model"
assert nnsight.is_model_running(name)
assert nnsight.is_model_running(name, task="text-generation")
model = TransformersModel(name)
assert model.task == "text-generation"
with model.trace("The Eiffel Tower is in the city of", remote=True):
    logits = model.lm_head.output.detach().save()
with model.generate("Two plus two is", remote=True, max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
    ids = tracer.result.save()
assert not model.dispatched
print(f"{logits.double().sum().item():.4f}", *ids[0].tolist())
"""


def test_a_lab_model_through_the_gateway_alone(
    process_server: running.Running, tiny_models: Path, tmp_path: Path
) -> None:
    script = tmp_path / "client.py"
    script.write_text(SCRIPT)
    empty = tmp_path / "home"
    closed = "http://127.0.0.1:9"
    environ = {"HF_HOME": str(empty), "http_proxy": closed, "https_proxy": closed, "no_proxy": "127.0.0.1"}
    total, ids = expected(tiny_models)
    said = subprocess_client.run(process_server.url, script, environ=environ).split()[-1 - len(ids) :]

    assert float(said[0]) == pytest.approx(total, rel=1e-4)
    assert list(map(int, said[1:])) == ids
    files = [name for _, _, names in os.walk(empty) for name in names]
    assert "config.json" in files
    assert not [name for name in files if name.endswith((".safetensors", ".bin"))]


def expected(folder: Path) -> tuple[float, list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = TransformersModel(str(folder), task="text-generation", tokenizer=tokenizer, dispatch=True)
    with model.trace("The Eiffel Tower is in the city of"):
        logits = model.lm_head.output.detach().save()
    with model.generate("Two plus two is", max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
        ids = tracer.result.save()
    return logits.double().sum().item(), ids[0].tolist()
