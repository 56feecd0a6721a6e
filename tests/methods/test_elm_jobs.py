"""Promise: `elm.erase` gives the same here and as a job, and its adapter is in any trace that names it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import running
import subprocess_client
import torch
from erasing import TOPICS, params
from nnsight.modeling.transformers import TransformersModel
from transformers import AutoTokenizer

import interlace
from interlace.methods import find, notebook
from interlace.methods.notebook import Notebook

ROOT = Path(__file__).parents[2]
MODEL = "local/planted-topics-mini"


@pytest.fixture(scope="module")
def topics_server(home: Path) -> Iterator[running.Running]:
    models = [{"source": str(TOPICS), "task": "text-generation", "threads": 1}]
    with running.interlace(home, {"runtime": "process", "models": models}, seconds=180) as server:
        yield server


def test_a_job_gives_what_a_notebook_gives(topics_server: running.Running, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(TOPICS)
    model = TransformersModel(str(TOPICS), task="text-generation", dispatch=True, tokenizer=tokenizer)
    given = params(steps=4, evaluation={"generations": 4, "relearn_steps": 2})
    report = Notebook(tmp_path / "here", seed=5, bar=False)
    here = notebook.run(find("elm.erase"), model, given, report)
    with interlace.connect(topics_server.url) as client:
        there = client.run("elm.erase", model=MODEL, params=given, seed=5, follow=False)
        assert there.metrics == here.metrics
        assert there.tables == here.tables
        assert there.warnings == here.warnings
        adapter: Any = there.artifacts[0]
        client.artifacts.download(adapter, tmp_path / "there")
    mine = report.open(here.artifacts[0])
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "there" / file).is_file()
    (tmp_path / "there" / "kind.json").write_text('{"kind": "peft"}')
    theirs = report.open(str(tmp_path / "there"))
    assert theirs.tensors.keys() == mine.tensors.keys()
    assert all(torch.equal(theirs.tensors[name], tensor) for name, tensor in mine.tensors.items())
    assert {**theirs.config, "base_model_name_or_path": None} == {**mine.config, "base_model_name_or_path": None}


def test_the_notebook(topics_server: running.Running) -> None:
    shown = subprocess_client.run(
        topics_server.url, ROOT / "tests" / "notebooks.py", str(ROOT / "examples" / "erase_a_concept.ipynb")
    )
    lines = shown.splitlines()
    before, after = (ast.literal_eval(line) for line in lines if line.startswith("{'healers'"))
    assert before["healers"][1] == before["boats"][1] == 1.0
    assert after["healers"][1] == 0.0
    assert after["healers"][0] < 0.01
    assert after["boats"][1] == 1.0
    parted = {
        line.split()[0]: ast.literal_eval(line.partition(" ")[2]) for line in lines if line[:1] in "hb" and "[" in line
    }
    assert parted["healers"][-1] > 2 * parted["boats"][-1] > 0
    assert lines[-1] == "True", "the base model is as it was"
