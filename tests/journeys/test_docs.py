"""Promise: what docs/streaming.md shows runs as it stands there."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import running
import tiny

PAGE = Path(__file__).parents[2] / "docs" / "streaming.md"


def test_the_examples_of_streaming(on_ray: running.Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)):
        file = tmp_path / f"example_{number}.py"
        code = block.replace("http://127.0.0.1:8000", on_ray.url).replace("layers[20]", "layers[1]")
        file.write_text(code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", tiny.LLAMA))
        names |= runpy.run_path(str(file), init_globals=names)
    names["client"].close()
    lines = capsys.readouterr().out.splitlines()
    assert "from the server" in lines
    assert sum(line.startswith("likely ") for line in lines) == 3
    assert [line.split()[:2] for line in lines if line.startswith("hidden ")] == [["hidden", str(n)] for n in range(3)]
    assert sum(line.startswith("residual ") for line in lines) == 2
    assert sum(line.startswith("layer ") for line in lines) == 3
    assert lines[-1] == "anything [1, 2, 3]"
