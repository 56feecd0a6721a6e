"""Promise: a resident model gives trusted tenants what a local one gives, and says that it does not protect itself."""

from collections.abc import Iterator
from pathlib import Path

import cases
import nnsight
import numpy as np
import pytest
import running
import tiny
import tiny_adapters
import tiny_diffusion
import torch
from nnsight import CONFIG, TransformersModel
from nnsight.modeling import huggingface
from nnsight.modeling.diffusion import DiffusionModel
from parity import Case, Lab, assert_same
from tiny_diffusion import SHAPES

import interlace


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def server(request: pytest.FixtureRequest, tiny_models: Path, home: Path) -> Iterator[running.Running]:
    model = {"source": tiny.GPT2, "executor": "resident", "trusted": ["local"], "device": request.param}
    with running.interlace(home, {"runtime": "process", "models": [model]}, seconds=300) as server:
        yield server


@pytest.fixture(autouse=True)
def resident(server: running.Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)


@pytest.mark.parametrize("case", [case for case in cases.ALL if case is not cases.generating], ids=lambda c: c.__name__)
def test_the_same_values_one_after_another(case: Case, models: Lab, server: running.Running) -> None:
    expected = case(models.local(tiny.GPT2, device="cpu"), False)
    for _ in range(2):
        assert_same(expected, case(models.client(tiny.GPT2), True))


def test_it_generates(models: Lab, server: running.Running) -> None:
    ids = cases.generating(models.client(tiny.GPT2), True)["ids"]
    assert ids.shape[1] == cases.generating(models.local(tiny.GPT2, device="cpu"), False)["ids"].shape[1]


def test_what_one_request_wants_of_the_model_is_gone_for_the_next(
    models: Lab, server: running.Running, tmp_path: Path
) -> None:
    """An adapter and another attention: put in place for a job, taken out after it."""
    folder = tiny_adapters.write(tmp_path / "adapter", tiny.GPT2, seed=1)
    plain = TransformersModel(tiny.GPT2, task="text-generation")
    adapted = TransformersModel(tiny.GPT2, task="text-generation", peft=str(folder))
    local = TransformersModel(tiny.GPT2, task="text-generation", peft=str(folder), dispatch=True, device="cpu")
    eager = TransformersModel(tiny.GPT2, task="text-generation", attn_implementation="eager")
    before = cases.reading(models.local(tiny.GPT2, device="cpu"), False)
    with interlace.Client(server.url) as client:
        adapted.peft = client.artifacts.upload(folder).ref
    with adapted.trace(cases.PROMPT, remote=True):
        logits = adapted.lm_head.output.save()
    with local.trace(cases.PROMPT):
        expected = local.lm_head.output.save()
    with eager.trace(cases.PROMPT, output_attentions=True, remote=True) as tracer:
        attentions = tracer.result.attentions.save()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert attentions[0] is not None
    assert_same(before, cases.reading(plain, True))
    assert "resident_replaced" not in server.logs(), "undone by a new process, and not in the old one"


def test_it_says_that_nothing_protects_it(server: running.Running) -> None:
    assert any("is resident: the jobs of local run unprotected" in line for line in server.lines)
    assert nnsight.status()[tiny.GPT2]["state"] == "RUNNING"


@pytest.mark.gpu
def test_a_pipeline_on_a_gpu_draws_what_it_draws_there_locally(
    stock_client: None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(tiny_diffusion.ASSET)
    hosted = {"source": source, "repo_id": SHAPES, "executor": "resident", "trusted": ["local"], "device": "cuda"}
    settings = {"num_inference_steps": 6, "seed": 3, "output_type": "np"}
    local = DiffusionModel(source, dispatch=True)
    local.pipeline.to("cuda")
    with local.generate("a large red circle", **settings):
        expected = nnsight.save(local.output.images[0])
    with running.interlace(home, {"runtime": "process", "models": [hosted]}, seconds=300) as server:
        monkeypatch.setattr(CONFIG.API, "HOST", server.url)
        monkeypatch.setitem(huggingface._ID_CACHE, source, SHAPES)
        client = DiffusionModel(source)
        with client.generate("a large red circle", remote=True, **settings):
            latents = client.unet.output[0].save()
            image = nnsight.save(client.output.images[0])
    assert latents.device.type == "cpu"
    assert np.allclose(image, expected, atol=1e-3)
