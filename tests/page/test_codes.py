"""The nnsight texts of the Playground, run here on a small model of each family: they say what the methods say."""

import contextlib
import io
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import FAMILIES, PROMPT, of_family

from interlace.methods import find
from interlace.methods.notebook import Notebook, run
from interlace.protocol.model import ModelKey
from interlace_server.page.tools import TOOLS
from interlace_state.models import ModelCard

OTHER = "The capital of Italy is"


def card_of(model_type: str, **config: Any) -> ModelCard:
    config["model_type"] = model_type
    return ModelCard(key=ModelKey(repo_id="lab/tiny"), commit="0" * 40, dtype="float32", config=config)


def ran(model: Any, tool: str, asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The names that a text makes, on a model that is here."""
    code = TOOLS[tool].trace(card_of(model._module.config.model_type), asked, 0)
    assert code is not None
    body = code.partition('task="text-generation")\n')[2].replace(", remote=True", "").replace("remote=True", "")
    file = folder / f"{tool}.py"  # nnsight reads its source
    file.write_text(body)
    with contextlib.redirect_stdout(io.StringIO()):
        return runpy.run_path(str(file), init_globals={"model": model, "torch": torch})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens(family: str, tmp_path: Path) -> None:
    model = of_family(family)
    asked = {"prompts": [PROMPT], "positions": "all", "top": 1}
    result = run(find("lens.logit"), model, asked, Notebook(tmp_path, bar=False))
    says = ran(model, "lens", asked, tmp_path)["says"]
    rows = result.table("readings").rows
    assert len(rows) == len(says) * says[0].values.numel()
    for _, position, layer, _, _, log_prob, *_ in rows:
        assert float(says[int(layer or 0)].values[int(position or 0)]) == pytest.approx(log_prob, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_a_patch(family: str, tmp_path: Path) -> None:
    model = of_family(family)
    asked = {"a": PROMPT, "b": OTHER, "answer_a": "Paris", "answer_b": "Rome"}
    rows = run(find("patch.prompts"), model, asked, Notebook(tmp_path, bar=False)).table("effects").rows
    effects = ran(model, "patch", asked, tmp_path)["effects"]
    assert effects.numel() == len(rows)
    torch.testing.assert_close(
        effects.flatten(), torch.tensor([float(row[4] or 0) for row in rows]), atol=2e-3, rtol=2e-3
    )


def test_a_trace_of_a_recurrent_model(tmp_path: Path) -> None:
    model = of_family("mamba")
    asked = TOOLS["trace"].asked({"prompt": PROMPT, "subject": "France", "answer": "", "samples": "2"})
    report = Notebook(tmp_path, bar=False)
    result = run(find("trace.causal"), model, asked, report)
    effects = report.open(result.artifacts[0]).tensors["0.resid_post"]
    torch.testing.assert_close(ran(model, "trace", asked, tmp_path)["back"].T, effects, atol=2e-3, rtol=2e-3)


def test_forms_and_parameters_say_the_same() -> None:
    card = card_of("llama", num_hidden_layers=4)
    for tool in TOOLS.values():
        form = {one.name: one.value for one in tool.fields}
        asked = tool.completed(tool.asked(form), card)
        params = find(tool.method).params.model_validate(asked).model_dump(mode="json")
        assert tool.asked(tool.form(params)) == asked
