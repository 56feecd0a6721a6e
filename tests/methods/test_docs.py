"""The page of methods runs as it stands, and so does the command line."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import running
import tiny

import interlace

ROOT = Path(__file__).parents[2]


def test_the_page(
    method_server: running.Running,
    keys: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NDIF_API_KEY", keys["lab-a"])
    names: dict[str, Any] = {}
    text = (ROOT / "docs" / "methods" / "README.md").read_text()
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
        file = tmp_path / f"example_{number}.py"
        code = block.replace("http://127.0.0.1:8000", method_server.url)
        file.write_text(code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", tiny.GPT2))
        names |= runpy.run_path(str(file), init_globals=names)
    names["client"].close()
    said = capsys.readouterr().out.splitlines()
    assert "top1_layer_3 0.0 fraction 2" in said
    assert "equal: True" in said
    assert any(line.endswith("2 forward passes") for line in said)
    assert any(line.startswith("Step 2 of 2 ") for line in said)
    assert said[-1].startswith("texts The Colosseum is in ")


def typed(server: running.Running, key: str, *words: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "interlace_deploy", *words]
    environ = os.environ | {"NDIF_HOST": server.url, "NDIF_API_KEY": key}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environ)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def test_the_command_line(
    method_server: running.Running, keys: dict[str, str], client: interlace.Client, tmp_path: Path
) -> None:
    key = keys["lab-a"]
    assert "lens.logit@1" in typed(method_server, key, "methods")
    shown = typed(method_server, key, "methods", "show", "lens.logit")
    assert "nostalgebraist (2020)" in shown
    assert re.search(r"prompts +list of texts or text +required +Texts to read", shown)
    assert re.search(r"entropy +list of numbers +Mean entropy of the reading of each block, in nats", shown)
    assert re.search(r"metrics +list of objects +Numbers, each with its unit", shown)
    shown = typed(method_server, key, "methods", "show", "steer")
    assert re.search(r"  \.wanted +text +required +Only its first token counts", shown)
    assert re.search(r"norm +number +Of the direction", shown)
    assert "It makes artifacts of the kind data." in shown
    (tmp_path / "prompts.txt").write_text("The Eiffel Tower is in\nTwo plus two is\n")
    (tmp_path / "params.yaml").write_text("layers: [-1]\ntop: 2\n")
    run = ["run", "lens.logit", "--model", tiny.GPT2, "--params", str(tmp_path / "params.yaml")]
    run += ["--input", f"prompts={tmp_path / 'prompts.txt'}"]
    assert json.loads(typed(method_server, key, *run, "--dry-run"))["forwards"] == 2
    followed = typed(method_server, key, *run, "--follow")
    assert re.search(r"top1_layer_3 +1 +fraction +2", followed)
    assert "table readings: 4 rows of prompt, position" in followed
    envelope = json.loads(typed(method_server, key, *run, "--follow", "--json", "--seed", "4"))
    assert envelope["provenance"]["seed"] == 4
    job_id = typed(method_server, key, *run).strip()
    assert client.follow_method(job_id).result(60).metric("top1_layer_3").value == 1.0
    assert "lens.logit@1" in typed(method_server, key, "jobs", "--limit", "1")
    wrong = typed(method_server, key, "run", "lens.logit", "--model", tiny.GPT2, code=1)
    assert "`params.prompts` is missing" in wrong
    assert "expected NAME=FILE" in typed(method_server, key, *run, "--input", "prompts", code=2)
    made = typed(method_server, key, "run", "norm.lens", "--model", tiny.GPT2, *run[6:], "--follow")
    assert re.search(r"artifact:[0-9a-f]{16}@[0-9a-f]{64}  data  \d+ bytes  norms", made)
