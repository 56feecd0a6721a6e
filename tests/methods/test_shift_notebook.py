"""Promise: a notebook without weights finds what a classifier looks at, and takes a cue out of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import running
import subprocess_client

ROOT = Path(__file__).parents[2]
BIOS = ROOT / "tests" / "assets" / "planted-bios-mini"


@pytest.fixture(scope="module")
def bios_server(home: Path) -> Iterator[running.Running]:
    models = [{"source": str(BIOS), "task": "text-generation", "threads": 1}]
    with running.interlace(home, {"runtime": "process", "models": models}, seconds=300) as server:
        yield server


def test_the_notebook(bios_server: running.Running) -> None:
    file = ROOT / "examples" / "sae_to_circuit_to_classifier.ipynb"
    shown = subprocess_client.run(bios_server.url, ROOT / "tests" / "notebooks.py", str(file))
    figures = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    heads = {
        name: [float(value) for value in figures[name].split()]
        for name in ("original", "ablated", "ablated, retrained", "random")
    }
    assert float(figures["before, spurious"]) > 0.75 > float(figures["before, intended"])
    assert float(figures["estimate against exact patching, r"]) > 0.8
    intended, spurious, worst = heads["ablated"]
    assert intended > 0.85
    assert spurious < 0.62
    assert worst > 0.7
    assert heads["random"][0] < heads["ablated"][0] - 0.15, "as many random features do not do it"
