"""SHIFT on a model whose cue and intended sign are planted, so that what must be found and removed is known."""

from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from nnsight.modeling.transformers import TransformersModel

from interlace.methods import find
from interlace.methods.base import Metric, ModelFacts
from interlace.methods.classifier.head import Head, Judged, Pooled, trained
from interlace.methods.classifier.spec import ShiftResult
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.capture import captured, last_logits
from interlace.methods.shared.sites import Sites
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

SHIFT = find("classifier.shift")
#: Of each class its job's word and its cue's; the cue comes twice as often.
JOBS, CUES, FILLERS = ["lecture", "ward"], ["he", "she"], ["the", "town", "day", "house"]
CLASSES = ["professor", "nurse"]


@pytest.fixture(scope="module")
def model() -> Any:
    """Every word's embedding is a direction of its own, and two blocks leave it as it is."""
    tokenizer = planted.words(JOBS, CUES, FILLERS)
    module = planted.blank(tokenizer, n_layer=2, n_embd=16)
    with torch.no_grad():
        module.transformer.wte.weight.copy_(torch.eye(16)[: len(tokenizer)])
    return TransformersModel(module, tokenizer=tokenizer)


def text(job: int, cue: int, number: int) -> str:
    words = [FILLERS[number // 4 % 4], CUES[cue], JOBS[job], CUES[cue], FILLERS[number // 16 % 4]]
    return " ".join(words[number % 3 :] + words[: number % 3])


AMBIGUOUS = {"ambiguous": [text(n % 2, n % 2, n) for n in range(48)], "labels": [CLASSES[n % 2] for n in range(48)]}
BALANCED = {
    "balanced": [text(n % 2, n // 2 % 2, n) for n in range(64)],
    "intended": [CLASSES[n % 2] for n in range(64)],
    "spurious": [CLASSES[n // 2 % 2] for n in range(64)],
}


def dictionary() -> tuple[str, dict[str, torch.Tensor], dict[str, Any]]:
    """A feature for each word: number i is token i."""
    weights = {"W_enc": torch.eye(16), "W_dec": torch.eye(16), "b_enc": torch.zeros(16), "b_dec": torch.zeros(16)}
    return "sae", weights, {"architecture": "standard", "metadata": {"layer": 0, "site": "embed"}}


def shift(model: Any, notebook: Notebook, **more: Any) -> ShiftResult:
    params = {"saes": notebook.artifact(*dictionary()), **AMBIGUOUS, **BALANCED, "layer": 1, "epochs": 20, "lr": 0.05}
    found = run(SHIFT, model, {**params, "reading": {"k": 4}, **more}, notebook)
    assert isinstance(found, ShiftResult)
    return found


def test_two_calls_take_the_cue_out(model: Any, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, bar=False)
    oracle = {"oracle": BALANCED["balanced"], "oracle_labels": BALANCED["intended"]}
    first = shift(model, notebook)
    # With twice as many cues as signs, the head goes by the cue wherever the two part.
    assert first.metric("spurious").value == 1.0
    assert first.metric("intended").value == 0.5
    assert first.metric("worst_group").value == 0.0
    shown = {one.feature: {context.tokens[context.at].strip() for context in one.shown.contexts}
             for one in first.candidates}  # fmt: skip
    assert list(shown.values())[:2] in ([{"he"}, {"she"}], [{"she"}, {"he"}]), "the cues have the largest effects"
    marked = [{"place": "embed", "feature": number} for number, words in shown.items() if words <= set(CUES)]
    second = shift(model, notebook, head=first.head, ablate=marked, **oracle)
    assert {one.feature for one in second.ablated} == {3, 4}
    for head in ("ablated", "ablated, retrained", "oracle"):
        assert second.metric("intended", head).value == 1.0
        assert second.metric("worst_group", head).value == 1.0
        assert second.metric("spurious", head).value == 0.5
    rows = [row for row in second.table("accuracy").rows if row[0] == "random"]
    assert [row[1] for row in rows] == [0, 1, 2]
    assert second.metric("spurious", "random").value > 0.7, "features that are not the cues do not take it out"
    assert not second.artifacts, "the head was the first call's"
    assert {one.get_text() for one in second.plot().axes[0].get_xticklabels()} >= {"original", "ablated", "random"}
    assert len(first.plot(candidates=2).axes) == 2


def test_effects_are_those_of_taking_a_feature_out(model: Any, tmp_path: Path) -> None:
    """On a head's logit all is linear here, but for the last norm, which the head comes before."""
    notebook = Notebook(tmp_path, bar=False)
    by_one, by_ten = (
        shift(model, notebook, method=method, metric="probe_logit", examples=48) for method in ("atp", "ig")
    )
    head = notebook.open(by_one.head, "probe").tensors["1.label"]
    one, ten = ({each.feature: each.effect for each in found.candidates} for found in (by_one, by_ten))
    for feature in one | ten:  # what has none may be in one list alone, for the last bits of it
        assert one.get(feature, 0.0) == pytest.approx(ten.get(feature, 0.0), abs=1e-5)
    cue = next(each for each in by_one.candidates if each.feature == 3)
    # "he" is twice in each professor's five words, and its direction passes the blocks as it is.
    weight = head[by_one.classes.index("professor"), 3]
    assert cue.effect == pytest.approx(-float(weight) * 2 / 5 / 2, rel=1e-3)


def test_the_head_and_the_groups() -> None:
    states = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 20)
    labels = torch.tensor([0, 1] * 20)
    head = trained(states, labels, 2, lr=0.1, epochs=10, batch=8, seed=0)
    again = trained(states, labels, 2, lr=0.1, epochs=10, batch=8, seed=0)
    assert torch.equal(head.weight, again.weight)
    assert head(states).argmax(-1).equal(labels)
    cue = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0] * 5)  # a quarter goes against the label
    wrong = Judged.of(Head(head.weight.flip(0), head.bias.flip(0)), states, labels, cue)
    assert (wrong.intended, wrong.spurious, wrong.worst) == (0.0, 0.25, 0.0)


def test_what_is_refused(model: Any, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, bar=False)
    with pytest.raises(InvalidRequest, match="there are dictionaries at \\['embed'\\]"):
        shift(model, notebook, ablate=[{"place": "resid_post.1", "feature": 0}])
    with pytest.raises(InvalidRequest, match="which has 16"):
        shift(model, notebook, ablate=[{"place": "embed", "feature": 16}])
    with pytest.raises(InvalidRequest, match="3 labels of balanced for 64 texts"):
        shift(model, notebook, intended=["nurse"] * 3, spurious=["nurse"] * 3)
    with pytest.raises(InvalidRequest, match="is no class"):
        shift(model, notebook, spurious=["pilot"] * 64)
    with pytest.raises(InvalidRequest, match="expected two or more"):
        shift(model, notebook, labels=["nurse"] * 48)
    with pytest.raises(InvalidRequest, match="measured on balanced"):
        shift(model, notebook, ablate=[])
    other = notebook.artifact("probe", {"1.label": torch.zeros(2, 16)}, {"classes": ["a", "b"]})
    with pytest.raises(InvalidArtifact, match="holds no head"):
        shift(model, notebook, head=other)


def test_blocks_behind_the_head_do_not_run(model: Any, tmp_path: Path) -> None:
    notebook, ran = Notebook(tmp_path, bar=False), []
    sites, ids = Sites.of(model), torch.tensor([[1, 3, 5]])
    place = sites.place("resid_post", 0)
    handle = model._module.transformer.h[1].register_forward_hook(lambda *_: ran.append(1))
    try:
        with torch.no_grad():
            read = Pooled(sites, place, 1, notebook)(ids)
            assert not ran
            with captured({"": place}) as states:
                last_logits(sites.module, ids)
        assert ran
    finally:
        handle.remove()
    torch.testing.assert_close(read, states[""][:, 1:].mean(1))
    later = {"sae": notebook.artifact(*dictionary()), "site": "resid_post", "layer": 1}
    with pytest.raises(InvalidRequest, match=r"resid_post\.1 come after the states that the head reads"):
        shift(model, notebook, layer=0, saes=[later])


def test_the_cost_counts_both_calls() -> None:
    facts = ModelFacts(n_params=10**6, n_layers=2, hidden_size=16, vocab_size=10)
    params = {"saes": "artifact:0123456789abcdef", **AMBIGUOUS, **BALANCED, "layer": 1, "ig_steps": 10}
    first = SHIFT.estimate(SHIFT.params.model_validate(params), facts)
    marked = [{"place": "embed", "feature": 1}]
    second = SHIFT.estimate(SHIFT.params.model_validate({**params, "ablate": marked}), facts)
    assert first.backwards == 48 * 10 // 16
    assert (second.backwards, second.forwards) == (0, -(-(5 * 112 + 48) // 16))


def test_metrics_of_random_features_are_means(model: Any, tmp_path: Path) -> None:
    found = shift(model, Notebook(tmp_path, bar=False), ablate=[{"place": "embed", "feature": 3}], controls=2)
    rows = [row[2] for row in found.table("accuracy").rows if row[0] == "random"]
    metric: Metric = found.metric("intended", "random")
    assert metric.value == pytest.approx(sum(map(float, map(str, rows))) / 2)
    assert metric.ci95 is None
