"""Features as a person sees them: what is told of each is what the model's own states say."""

from pathlib import Path
from typing import Any

import method_cases
import pytest
import small_models
import torch

from interlace.methods import find
from interlace.methods.feature.spec import DescribeResult
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.capture import captured
from interlace.methods.shared.sites import Sites
from interlace.protocol.errors import InvalidRequest

DESCRIBE = find("feature.describe")
TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    "Two plus two is four",
    "The capital of France is Paris",
    "Two plus two is four, and three plus three is six.",
    "John gave a drink to Mary.",
]
POSITIVE, NEGATIVE = 5, 64 + 5  # the parts of dimension 5, of the mirror


@pytest.fixture(scope="module")
def model() -> Any:
    return small_models.of_family("gpt2")


def describe(model: Any, folder: Path, **more: Any) -> DescribeResult:
    notebook = Notebook(folder, bar=False)
    params = {"data": TEXTS, "features": [POSITIVE, NEGATIVE], "sae": notebook.artifact(*method_cases._mirror())}
    found = run(DESCRIBE, model, {**params, "model_batch": 2, **more}, notebook)
    assert isinstance(found, DescribeResult)
    return found


def states(model: Any, text: str) -> torch.Tensor:
    """The stream after block 2, [tokens, 64]."""
    sites = Sites.of(model)
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with torch.no_grad(), captured({"": sites.place("resid_post", 2)}) as seen:
        model._module(input_ids=ids)
    return seen[""][0]


def test_contexts_and_histogram_are_of_the_models_states(model: Any, tmp_path: Path) -> None:
    found = describe(model, tmp_path, reading={"k": 3, "before": 2, "after": 1, "bins": 4})
    every = [states(model, text)[:, 5].relu() for text in TEXTS]
    one = found.features[0]
    whole = torch.cat(every)
    assert (one.n, one.fires) == (len(whole), pytest.approx(float((whole > 0).float().mean())))
    assert one.most == pytest.approx(float(whole.max()), abs=1e-5)
    assert sum(one.counts) == int((whole > 0).sum())
    assert (len(one.counts), len(one.edges)) == (4, 5)
    best = sorted(range(len(TEXTS)), key=lambda number: -float(every[number].max()))
    peaks = [context.peak for context in one.contexts]
    assert peaks == sorted(peaks, reverse=True)
    assert one.contexts[0].text == best[0]
    for context in one.contexts:
        ids = model.tokenizer(TEXTS[context.text])["input_ids"]
        assert context.peak == pytest.approx(float(every[context.text].max()), abs=1e-5)
        assert context.position == int(every[context.text].argmax())
        assert context.tokens[context.at] == model.tokenizer.decode([ids[context.position]])
        assert len(context.tokens) <= 4
    assert found.table("contexts").rows[0][6] == one.contexts[0].tokens[one.contexts[0].at]


def test_texts_that_begin_the_same_are_one_context(model: Any, tmp_path: Path) -> None:
    once = describe(model, tmp_path / "a").features[0]
    twice = describe(model, tmp_path / "b", data=[*TEXTS, *TEXTS]).features[0]
    assert [one.text for one in twice.contexts] == [one.text for one in once.contexts]
    assert twice.n == 2 * once.n


def test_logit_effects_are_the_slope_of_norm_and_head(model: Any, tmp_path: Path) -> None:
    up, down = describe(model, tmp_path).features
    module = model._module
    sites, ids = Sites.of(model), [torch.tensor(model.tokenizer(text)["input_ids"])[None] for text in TEXTS]
    last = []
    for one in ids:
        with torch.no_grad(), captured({"": sites.place("resid_post", 3)}) as seen:
            module(input_ids=one)
        last.append(seen[""][0].double())
    rows, step = torch.cat(last)[:64], 1e-3 * torch.eye(64)[5].double()
    double = torch.nn.LayerNorm(64, dtype=torch.float64)
    double.load_state_dict(module.transformer.ln_f.state_dict())
    with torch.no_grad():
        slope = (double(rows + step) - double(rows - step)).mean(0) / 2e-3 @ module.lm_head.weight.double().T
    slope -= slope.mean()
    best = int(slope.argmax())
    assert up.promoted[0] == (model.tokenizer.decode([best]), pytest.approx(float(slope[best]), rel=0.05))
    assert [token for token, _ in down.promoted] == [token for token, _ in up.suppressed]


def test_a_place_beside_the_stream_has_no_direct_effects(model: Any, tmp_path: Path) -> None:
    found = describe(model, tmp_path, site="mlp_in", layer=1)
    assert not found.features[0].promoted
    assert any("residual stream" in one for one in found.warnings)


def test_the_picture_and_what_is_refused(model: Any, tmp_path: Path) -> None:
    found = describe(model, tmp_path)
    drawn = found.plot(features=[NEGATIVE], contexts=3)
    titles = [axes.get_title(loc="left") for axes in drawn.axes]
    assert f"resid_post 2, feature {NEGATIVE}" in titles
    with pytest.raises(LookupError, match="was not described"):
        found.plot(features=[1])
    with pytest.raises(InvalidRequest, match="has 0 to 127"):
        describe(model, tmp_path, features=[128])
