"""Promise: a dictionary that a job trained is read and edited in remote traces as in local ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nnsight
import pytest
import running
import subprocess_client
import tiny
import torch
from nnsight import TransformersModel

import interlace
from interlace.methods.notebook import Notebook

ROOT = Path(__file__).parents[2]
OTHELLO = ROOT / "tests" / "assets" / "othello-gpt-mini"
PROMPT = "The capital of France is"
TEXTS = ["The Eiffel Tower is located in the city of Paris.", "Two plus two is four.", "The Colosseum is in Rome."]
SHORT = {
    "layer": 1,
    "steps": 30,
    "batch": 16,
    "buffer": 48,
    "d_sae": 96,
    "lr": 1e-2,
    "lr_warmup": 2,
    "sparsity_warmup": 3,
}


@pytest.fixture
def nowhere(client: interlace.Client, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hosted model without its weights."""
    monkeypatch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", False)
    return TransformersModel(tiny.GPT2, task="text-generation")


def look(model: Any, sae: Any, client: interlace.Client | None) -> list[torch.Tensor]:
    def where() -> dict[str, Any]:
        return {"backend": client.on(model)} if client else {}

    with torch.no_grad():
        with model.trace(PROMPT, **where()):
            features = sae.features[:].save()
            plain = model.lm_head.output.save()
        with model.trace(PROMPT, **where()):
            sae.features[:, -1, 5] = 4.0
            again = sae.features[0, -1].save()
            edited = model.lm_head.output.save()
    return [features, plain, again, edited]


def test_a_remote_trace_reads_and_edits_features_as_a_local_one(
    client: interlace.Client, local: Any, nowhere: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = client.run("sae.train", model=tiny.GPT2, params={"data": TEXTS, **SHORT}, follow=False)
    here = client.artifacts.open(result.sae)
    folder = Notebook(tmp_path, bar=False).artifact("sae", here.tensors, here.config)
    submit, sent = client.submit, []

    def watched(request: Any, blob: bytes, *more: Any) -> Any:
        sent.append(len(blob))
        return submit(request, blob, *more)

    monkeypatch.setattr(client, "submit", watched)
    remote = look(nowhere, interlace.sae(nowhere, result.sae), client)
    mine = look(local, interlace.sae(local, folder), None)
    for one, other in zip(remote, mine, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert float((remote[3] - remote[1]).abs().max()) > 1e-2
    assert float(remote[2][5]) == 4.0
    weights = sum(tensor.nbytes for tensor in here.tensors.values())
    assert len(sent) == 2
    assert all(size < weights / 4 for size in sent), "its weights do not travel with the block"


def test_what_it_holds_is_what_an_estimate_says(client: interlace.Client) -> None:
    """A step's features are nearly all of it: 16 MiB each."""
    params = {"data": TEXTS, **SHORT, "steps": 4, "batch": 1024, "buffer": 2048, "d_sae": 4096}
    said = client.estimate("sae.train", model=tiny.GPT2, params=params)
    job = client.submit_method("sae.train", model=tiny.GPT2, params=params, seed=1)
    job.result()
    assert job.cost is not None
    assert job.cost.max_memory_usage is not None
    assert said.peak_bytes / 2 < job.cost.max_memory_usage < said.peak_bytes * 2


def test_a_dictionary_that_is_not_ones_own_is_not_there(nowhere: Any, client: interlace.Client) -> None:
    sae = interlace.sae(nowhere, "artifact:0123456789abcdef")
    with pytest.raises(Exception, match="0123456789abcdef"):
        with nowhere.trace(PROMPT, backend=client.on(nowhere)):
            features = sae.features[:].save()


@pytest.fixture(scope="module")
def othello_server(home: Path) -> Iterator[running.Running]:
    models = [{"source": str(OTHELLO), "task": "text-generation", "threads": 1}]
    with running.interlace(home, {"runtime": "process", "models": models}, seconds=300) as server:
        yield server


def test_the_notebook(othello_server: running.Running) -> None:
    shown = subprocess_client.run(
        othello_server.url, ROOT / "tests" / "notebooks.py", str(ROOT / "examples" / "train_and_read_an_sae.ipynb")
    )
    figures = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    assert float(figures["variance explained"]) > 0.5
    assert 0.5 < float(figures["loss recovered"].split()[0]) <= 1.01
    assert float(figures["coverage, held out"].split()[0]) > 0.3
    assert float(figures["logits move by"]) > 0.01
    assert figures["the same features in the downloaded folder"] == "True"
