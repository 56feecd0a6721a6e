"""Promise: what the pages of docs/ show runs as it stands there."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import running
import tiny
import tiny_adapters

DOCS = Path(__file__).parents[2] / "docs"


def run(page: str, url: str, folder: Path) -> None:
    """Run a page's Python, block by block, against a tiny model."""
    names: dict[str, Any] = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)):
        file = folder / f"example_{number}.py"
        code = block.replace("http://127.0.0.1:8000", url).replace("layers[20]", "layers[1]")
        file.write_text(code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", tiny.LLAMA))
        names |= runpy.run_path(str(file), init_globals=names)
    names["client"].close()


def test_the_examples_of_adapters(
    on_ray: running.Running, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_adapters.write(tmp_path / "my-adapter", tiny.LLAMA, 1)
    run("adapters.md", on_ray.url, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"artifact:[0-9a-f]{{16}}@[0-9a-f]{{64}} [0-9,]+ parameters for {tiny.LLAMA}", lines[0])
    moved = re.fullmatch(r"torch.Size\(\[1, \d+, 4\]\) the adapter moves the logits by (\d+\.\d+)", lines[1])
    assert moved is not None
    assert float(moved[1]) > 0.01
    assert lines[2].split()[1:5] == ["peft", "polite,", "step", "2000"]
    assert lines[3].startswith("heads, queries, keys: (4, ")
    assert {file.name for file in (tmp_path / "again").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_the_examples_of_streaming(on_ray: running.Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("streaming.md", on_ray.url, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert "from the server" in lines
    assert sum(line.startswith("likely ") for line in lines) == 3
    assert [line.split()[:2] for line in lines if line.startswith("hidden ")] == [["hidden", str(n)] for n in range(3)]
    assert sum(line.startswith("residual ") for line in lines) == 2
    assert sum(line.startswith("layer ") for line in lines) == 3
    assert lines[-1] == "anything [1, 2, 3]"
