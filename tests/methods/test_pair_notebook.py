"""Promise: a notebook without weights teaches a hosted pipeline a style, and draws with it."""

import json
from pathlib import Path

import running
import subprocess_client

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "teach_one_style.ipynb"


def test_the_notebook(method_server: running.Running, keys: dict[str, str]) -> None:
    environ = {"NDIF_API_KEY": keys["lab-a"]}
    script = ROOT / "tests" / "notebooks.py"
    said = subprocess_client.run(method_server.url, script, str(NOTEBOOK), environ=environ).splitlines()
    assert "strength 0 is the bare model: True" in said
    figures = {line.split()[0]: line.split()[1] for line in said if len(line.split()) == 2}
    assert float(figures["orth_max"]) < 1e-6


def test_it_was_run_as_it_stands() -> None:
    """Every cell of code has been executed, and those that draw show a picture."""
    cells = [one for one in json.loads(NOTEBOOK.read_text())["cells"] if one["cell_type"] == "code"]
    assert [one["execution_count"] for one in cells] == list(range(1, len(cells) + 1))
    assert all(any("image/png" in output.get("data", {}) for output in one["outputs"]) for one in cells)
