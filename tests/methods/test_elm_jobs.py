"""Promise: a notebook without weights erases a concept from a hosted model, and looks at it through the adapter."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import running
import subprocess_client
from erasing import TOPICS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def topics_server(home: Path) -> Iterator[running.Running]:
    models = [{"source": str(TOPICS), "task": "text-generation", "threads": 1}]
    with running.interlace(home, {"runtime": "process", "models": models}, seconds=300) as server:
        yield server


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
