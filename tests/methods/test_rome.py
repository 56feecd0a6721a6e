"""ROME on facts that small models know: the fact changes, the edit acts where it was put, the rest stays."""

from pathlib import Path
from typing import Any

import facts_of
import pytest
import small_models
import torch
from small_models import FACTS_GPT, FACTS_MAMBA

from interlace.methods.base import ModelFacts, Result
from interlace.methods.notebook import Notebook, run
from interlace.methods.rome import values
from interlace.methods.rome.keys import given_by
from interlace.methods.rome.spec import SPECS, Request, RomeParams
from interlace.methods.shared import capture, edits
from interlace.methods.shared.prompts import Prompt, first_token
from interlace.methods.shared.sites import Sites, evaluating
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

_ROME = SPECS[0]
#: A model of 128 dimensions needs a larger change, relative to its values, than one of thousands.
_SMALL = {"clamp": 20, "steps": 40, "sampled": [[2, 4]], "most_tokens": 4000}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Notebook]:
    """Three facts of the GPT changed, and the folder of their edits."""
    others = facts_of.unrelated(("capital", "currency"), 12)
    return _edited(FACTS_GPT, tmp_path_factory.mktemp("three"), number=3, unrelated=others)


def _edited(
    folder: Path, tmp_path: Path, relation: str = "job", number: int = 2, **params: Any
) -> tuple[Result, Notebook]:
    asked = {"requests": facts_of.requests(relation, number), "layer": 1, **_SMALL, **params}
    if asked.get("key", "covariance") == "covariance" and "covariance" not in asked:
        asked["texts"] = facts_of.corpus()[::3]
    report = Notebook(tmp_path, bar=False)
    return run(_ROME, small_models.facts(folder), asked, report), report


def test_the_fact_changes_and_the_rest_stays(three: tuple[Result, Notebook]) -> None:
    result, _ = three
    assert {name: result.metric(name, "before").value for name in ("ES", "NS", "unrelated")} == {
        "ES": 0,
        "NS": 1,
        "unrelated": 1,
    }
    after = {name: result.metric(name, "after").value for name in ("ES", "ES_acc", "PS", "NS", "S", "unrelated")}
    assert after["ES"] == after["ES_acc"] == 1
    assert after["PS"] >= 0.6
    assert after["NS"] >= 0.75
    assert after["S"] == pytest.approx(3 / (1 / after["ES"] + 1 / after["PS"] + 1 / after["NS"]))
    assert after["unrelated"] >= 0.9
    assert result.metric("other_relations", "before").value == 1
    assert all(row[-2] < 0.05 and row[-1] > 0.5 for row in result.table("requests").rows)
    (axes,) = result.plot().axes
    assert [one.get_text().replace("\n", "_") for one in axes.get_xticklabels()][:3] == ["ES", "PS", "NS"]


def test_a_random_key_is_no_edit_of_one_fact(tmp_path: Path) -> None:
    others = facts_of.unrelated(("capital", "currency"), 12)
    result, _ = _edited(FACTS_GPT, tmp_path, number=1, key="random", unrelated=others)
    assert result.metric("unrelated", "after").value < 0.8
    assert result.condition is None


def test_the_last_block_has_nothing_to_say_at_the_subject(tmp_path: Path) -> None:
    result, _ = _edited(FACTS_GPT, tmp_path, layer=5, number=2, steps=6)
    assert result.metric("ES", "after").value == 0
    assert result.metric("NS", "after").value == 1


@pytest.mark.parametrize(
    ("folder", "site", "layer"),
    [(FACTS_GPT, "mlp_out", 2), (FACTS_MAMBA, "mixer_in.x", 1)],
)
def test_the_edit_is_found_where_it_was_planted(folder: Path, site: str, layer: int, tmp_path: Path) -> None:
    """Restoring what the edited projections gave before, at one token and layer: at the edit's own all of it goes."""
    result, report = _edited(folder, tmp_path, number=1, site=site, layer=layer)
    model = small_models.facts(folder)
    sites, request = Sites.of(model), facts_of.requests("job", 1)[0]
    prompt = Prompt.of(model.tokenizer, request["prompt"].replace("{}", request["subject"]), request["subject"])
    ids, new = torch.tensor([prompt.ids]), first_token(model.tokenizer, request["target_new"])
    places = {one: given_by(sites.projection(site, one)) for one in range(sites.n_layers)}

    def probability(*patches: capture.Patch) -> float:
        with torch.no_grad(), capture.patched(patches):
            return float(model._module(input_ids=ids).logits[0, -1].double().softmax(-1)[new])

    with torch.no_grad(), capture.captured(places) as before:
        model._module(input_ids=ids)
    none, zero = probability(), torch.tensor([0])
    drops = {}
    with edits.attached(model, [report.open(result.artifacts[-1], "edit")]):
        edited = probability()
        for one, place in places.items():
            for token in range(len(prompt.ids)):
                patch = capture.Patch(place, zero, torch.tensor([token]), before[one][0, token][None])
                drops[one, token] = edited - probability(patch)
    added = edited - none
    assert added > 0.3, "the edit does too little to be looked for"
    assert drops[layer, prompt.last] >= 0.98 * added
    assert max(abs(drop) for (one, _), drop in drops.items() if one < layer) <= 1e-4
    away = {token: abs(drop) for (one, token), drop in drops.items() if one == layer and token < prompt.first}
    assert max(away.values(), default=0) <= 0.1 * added
    assert probability() == none


def test_the_artifact_is_the_edit_that_was_judged(three: tuple[Result, Notebook]) -> None:
    result, report = three
    model = small_models.facts(FACTS_GPT)
    for artifact, request, row in zip(
        result.artifacts, facts_of.requests("job", 3), result.table("requests").rows, strict=True
    ):
        opened = report.open(artifact, "edit")
        assert opened.config["edits"] == [{"layer": 1, "site": "mlp_out", "form": "rank_one"}]
        assert opened.config["facts"][0]["subject"] == request["subject"]
        assert opened.tensors["0.u"].norm() == pytest.approx(1, abs=1e-5)
        with edits.attached(model, [opened]):
            logits = small_models.logits(model, request["prompt"].replace("{}", request["subject"]))[0, -1]
        new = first_token(model.tokenizer, request["target_new"])
        assert float(logits.double().softmax(-1)[new]) == pytest.approx(row[-1], abs=1e-5)


def test_a_covariance_that_was_kept_makes_the_same_edit(tmp_path: Path) -> None:
    first, report = _edited(FACTS_GPT, tmp_path, number=1, keep_covariance=True, steps=3)
    assert report.open(first.artifacts[0], "data").config["site"] == "mlp_out"
    asked = {
        "requests": facts_of.requests("job", 1),
        "layer": 1,
        **_SMALL,
        "steps": 3,
        "covariance": first.artifacts[0],
    }
    again = run(_ROME, small_models.facts(FACTS_GPT), asked, report)
    one, two = (report.open(each.artifacts[-1], "edit").tensors for each in (first, again))
    for name in one:
        torch.testing.assert_close(one[name], two[name])
    assert again.cov_tokens == first.cov_tokens == 4000
    with pytest.raises(InvalidArtifact, match="is no covariance of 512 keys of mlp_out of layer 2"):
        run(_ROME, small_models.facts(FACTS_GPT), {**asked, "layer": 2}, report)


def test_edits_together_are_one_artifact_under_which_all_facts_are_new(tmp_path: Path) -> None:
    result, report = _edited(FACTS_GPT, tmp_path, number=2, apply="together")
    assert len(result.artifacts) == 1
    assert len(report.open(result.artifacts[0], "edit").config["edits"]) == 2
    assert result.metric("ES", "after").value == 1


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    request = facts_of.requests("job", 1)[0]
    with pytest.raises(ValueError, match="give one of `texts` and `covariance`"):
        RomeParams.model_validate({"requests": [request], "layer": 1})
    with pytest.raises(ValueError, match="must have `\\{\\}` once"):
        RomeParams.model_validate({"requests": [{**request, "prompt": "no place"}], "layer": 1, "key": "raw"})
    with pytest.raises(InvalidRequest, match="The layer is 9"):
        _edited(FACTS_GPT, tmp_path, layer=9)
    with pytest.raises(InvalidRequest, match="gate' cannot be had"):
        _edited(FACTS_GPT, tmp_path, site="mixer_in.gate")
    with pytest.raises(InvalidRequest, match=r"no token in `params.texts`"):
        _edited(FACTS_GPT, tmp_path, texts=[""], covariance=None)
    params = RomeParams.model_validate({"requests": [request], "layer": 1, "key": "raw"})
    cost = _ROME.estimate(params, ModelFacts(n_params=1000, n_layers=6, hidden_size=128, vocab_size=2048))
    assert cost.backwards == 20
    assert cost.forwards > 20


def test_what_the_edit_must_keep_is_the_divergence_of_the_edited_from_the_unedited_model(tmp_path: Path) -> None:
    """Equation 4 has KL(edited || unedited) after "{subject} is a", as the reference code has."""
    model = small_models.facts(FACTS_GPT)
    module, tokenizer = model._module, model.tokenizer
    request = Request.model_validate(facts_of.requests("job", 1)[0])
    far = {"kl": 0, "enough": 0, "lr": 3, "clamp": 50}  # so that both directions are far from each other
    params = RomeParams.model_validate({"requests": [request], "layer": 1, "key": "raw", **far})
    with evaluating(module):
        projection = Sites.of(module).projection("mlp_out", 1)
        made = values.found(module, tokenizer, projection, request, (), params, Notebook(tmp_path, bar=False))
        asked = Prompt.of(tokenizer, f"{request.subject} is a", request.subject)
        last, delta = torch.tensor([asked.last]), made.delta[None]

        def moved(state: torch.Tensor) -> torch.Tensor:
            return state.index_put((torch.tensor([0]), last), state[0, last] + delta)

        with torch.no_grad():
            before = capture.last_logits(module, torch.tensor([asked.ids]))[0].double().log_softmax(-1)
            with capture.altered([(given_by(projection), moved)]):
                after = capture.last_logits(module, torch.tensor([asked.ids]))[0].double().log_softmax(-1)
    right, wrong = ((one.exp() * (one - other)).sum().item() for one, other in ((after, before), (before, after)))
    assert right != pytest.approx(wrong, rel=0.1)
    assert made.curve[-1][3] == pytest.approx(right, rel=1e-3)


def test_the_subject_is_edited_where_the_prompt_has_it() -> None:
    tokenizer = small_models.facts(FACTS_GPT).tokenizer
    request = Request(prompt="{} is a city, and Paris is in", subject="Paris", target_new="Italy")
    rows = values._rows(tokenizer, request, ["Of Paris they say"])
    inside = [tokenizer.decode(rows.ids[row, : int(rows.subjects[row]) + 1]).strip() for row in (0, 1)]
    assert inside == ["Paris", "Of Paris they say Paris"]
