"""`lens.logit` on a model whose facts are known, its picture, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import small_models
import tiny
import torch
from nnsight import TransformersModel

from interlace.methods import find
from interlace.methods.lens.spec import LensResult
from interlace.methods.notebook import Notebook, run
from interlace.protocol.errors import InvalidRequest

FACTS = Path(__file__).parent.parent / "assets" / "facts-mamba-mini"
PROMPT, ANSWER = "Kasimir Quackenbush was born in the city of", " Toronto"


@pytest.fixture(scope="module")
def mamba() -> Any:
    model = TransformersModel(str(FACTS), task="text-generation", dispatch=True)
    model._module.eval()
    return model


def lens(model: Any, folder: Path, **params: Any) -> LensResult:
    result = run(find("lens.logit"), model, {"prompts": [PROMPT]} | params, Notebook(folder, bar=False))
    assert isinstance(result, LensResult)
    return result


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) for module in model._module.modules())


def test_a_fact_comes_up_through_the_blocks(mamba: Any, tmp_path: Path) -> None:
    result = lens(mamba, tmp_path, targets=[ANSWER])
    frame = result.table("readings").frame()
    best = frame[frame["rank"] == 0].set_index("layer")
    last = max(result.layers)
    assert best.loc[last, "token"] == ANSWER
    assert best.loc[0, "target_rank"] > 0
    assert best.loc[0, "target_log_prob"] < best.loc[last, "target_log_prob"] - 1
    assert result.metric(f"top1_layer_{last}").value == 1.0
    assert result.entropy[last] < result.entropy[0]


def test_the_last_block_says_what_the_model_says(local: Any, tmp_path: Path) -> None:
    before = hooks(local)
    result = lens(local, tmp_path, positions=[0, 3, -1], top=3)
    assert hooks(local) == before
    ids = local.tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        expected = local._module(**ids).logits[0].log_softmax(-1)
    frame = result.table("readings").frame()
    told = frame[(frame["layer"] == 3) & (frame["position"] == 3)]
    assert told["log_prob"].tolist() == expected[3].topk(3).values.tolist()


def test_a_model_that_is_being_trained_is_read_without_its_dropout(tmp_path: Path) -> None:
    model = copy.deepcopy(small_models.of_family("gpt2")._module)
    model.transformer.drop.p = 0.5
    local = TransformersModel(model, tokenizer=tiny.tokenizer(is_encoder=False))
    still = lens(local, tmp_path)
    model.train()
    assert lens(local, tmp_path) == still
    assert model.training


def test_it_shows_itself_in_a_few_lines(local: Any, tmp_path: Path) -> None:
    result = lens(local, tmp_path, positions="all")
    lines = repr(result).splitlines()
    assert lines[0] == "LensResult"
    assert lines[1].startswith("  top1_layer_0 = ")
    assert any(line.startswith("  table readings: ") and " rows of prompt, position" in line for line in lines)
    assert len(lines) < 20


def test_prompts_that_no_model_reads(local: Any, tmp_path: Path) -> None:
    most = local._module.config.max_position_embeddings
    for prompt, said in (("", "has no token"), ("a " * most * 2, f"this model reads {most:,} at most")):
        with pytest.raises(InvalidRequest, match=f"`params.prompts.1` .*{said}"):
            lens(local, tmp_path, prompts=[PROMPT, prompt])


def test_its_picture(local: Any, tmp_path: Path) -> None:
    figure = lens(local, tmp_path, positions=[-2, -1]).plot()
    assert figure._repr_png_().startswith(b"\x89PNG")  # by which a notebook draws it
    figure.savefig(tmp_path / "lens.png")
    assert (tmp_path / "lens.png").stat().st_size > 5_000
    said = {text.get_text() for text in figure.axes[0].texts}
    assert len(said) >= 2


def test_what_it_refuses(local: Any, tmp_path: Path) -> None:
    for params, sentence in (
        ({"layers": [9]}, r"`params.layers` has 9; the model's blocks are 0 to 3"),
        ({"positions": [99]}, r"`params.positions` has 99"),
        ({"targets": ["a", "b"]}, r"has 2 texts and `params.prompts` 1"),
        ({"targets": [""]}, r"`params.targets.0` has no token"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            lens(local, tmp_path, **params)


def test_every_position_with_its_token(local: Any, tmp_path: Path) -> None:
    result = lens(local, tmp_path, positions="all", top=1)
    ids = local.tokenizer(PROMPT).input_ids
    assert [row[2] for row in result.table("tokens").rows] == [local.tokenizer.decode([one]) for one in ids]
    assert {row[1] for row in result.table("readings").rows} == set(range(len(ids)))
    assert result.table("readings").rows == lens(local, tmp_path, positions=list(range(len(ids))), top=1).tables[0].rows
