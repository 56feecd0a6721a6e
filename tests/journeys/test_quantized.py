"""Promise: a model that is held in 8 or 4 bits gives on processors what it gives locally, held so."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import running
import tiny
import tiny_adapters
import torch
from nnsight import CONFIG
from parity import Lab, assert_same

import interlace
from interlace_workers.child.loading import quantized

PROMPT = "The Eiffel Tower is in the city of"
HELD = {tiny.LLAMA: "int8", tiny.GPT2: "nf4"}
TYPES = {"int8": torch.float16, "nf4": torch.bfloat16}


@pytest.fixture(scope="module")
def shelf(home: Path, tiny_models: Path) -> Path:
    """An adapter for each model, where the server finds it."""
    folder = home / "shelf"
    for repo_id in HELD:
        tiny_adapters.write(folder / repo_id.rpartition("/")[2], repo_id, 1)
    return folder


@pytest.fixture(scope="module")
def server(home: Path, shelf: Path) -> Iterator[running.Running]:
    configuration = {
        "runtime": "process",
        "isolation": "required",
        "models": [{"source": name, "repo_id": name, "quantization": how, "threads": 1} for name, how in HELD.items()],
        "adapters": {"folders": [str(shelf)]},
        "gateway": {"port": 0, "drain_seconds": 1},
    }
    with running.interlace(home, configuration, seconds=300) as server:
        yield server


@pytest.fixture(autouse=True)
def to_server(server: running.Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)


def edited(model: Any, remote: Any) -> dict[str, Any]:
    """A layer read and set, an earlier one's gradient, and the logits."""
    layers = model.model.layers if hasattr(model, "model") else model.transformer.h
    with model.trace(PROMPT, remote=remote):
        early = layers[0].output.save()
        early.retain_grad()
        layers[1].output[:, -1] *= 0.5
        late = layers[1].output.detach().save()
        logits = model.lm_head.output.save()
        logits.float().square().sum().backward()
        gradient = early.grad.save()
    return {"early": early.detach(), "late": late, "logits": logits.detach(), "gradient": gradient}


def plain(model: Any, remote: Any) -> torch.Tensor:
    with model.trace(PROMPT, remote=remote):
        logits = model.lm_head.output.detach().save()
    return logits


def packed(models: Lab, repo_id: str, **options: Any) -> Any:
    """The model here, held as the server holds it."""
    model = models.local(repo_id, dtype=HELD[repo_id], device_map={"": "cpu"}, **options)
    quantized.keep_gradients(model._module)
    return model


@pytest.mark.parametrize("repo_id", HELD)
def test_it_reads_and_edits_as_the_same_model_does_locally(models: Lab, repo_id: str) -> None:
    client = models.client(repo_id)
    here, there = edited(packed(models, repo_id), False), edited(client, True)
    assert_same(here, there)
    assert there["logits"].dtype == TYPES[HELD[repo_id]]
    untouched, whole = plain(client, True), plain(models.local(repo_id), False)
    assert not torch.allclose(untouched, there["logits"], atol=1e-3)
    # Fewer bits are near, and are not the same.
    distance = torch.linalg.vector_norm(untouched.float() - whole) / torch.linalg.vector_norm(whole)
    assert 1e-4 < distance < 0.5


@pytest.mark.parametrize("repo_id", HELD)
def test_it_generates_and_takes_an_adapter(models: Lab, repo_id: str, shelf: Path) -> None:
    path = str(shelf / repo_id.rpartition("/")[2])
    adapted = plain(models.client(repo_id, peft=path), True)
    assert_same(plain(packed(models, repo_id, peft=path), False), adapted)
    client, here = models.client(repo_id), packed(models, repo_id)
    assert not torch.equal(adapted, plain(client, True))
    with client.generate(PROMPT, max_new_tokens=3, do_sample=False, remote=True):
        tokens = client.generator.output.save()
    with here.generate(PROMPT, max_new_tokens=3, do_sample=False):
        expected = here.generator.output.save()
    assert torch.equal(tokens, expected)


def test_it_says_how_it_is_held(server: running.Running) -> None:
    with interlace.connect(server.url) as client:
        views = {one.model: one for one in client.models()}
    for repo_id, how in HELD.items():
        view = views[repo_id]
        assert (view.dtype, view.quantization) == (how, how)
