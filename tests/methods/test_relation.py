"""`relation.lre`: on a relation that is affine by construction, and on facts that were learned."""

import copy
import json
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from pydantic import ValidationError
from small_models import FACTS_MAMBA, FAMILIES, facts, of_family

from interlace.methods import find
from interlace.methods.base import ModelFacts
from interlace.methods.notebook import Notebook, run
from interlace.methods.relation.jacobian import Differentiator
from interlace.methods.relation.run import _Relation, crossed, inverted
from interlace.methods.relation.spec import RelationParams, Sample
from interlace.methods.shared.prompts import Prompt
from interlace.methods.shared.sites import Sites, evaluating
from interlace.protocol.errors import InvalidRequest

FACTS_GPT = FACTS_MAMBA.parent / "facts-gpt-mini"
LRE = find("relation.lre")


def _samples(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"subject": subject, "object": answer} for subject, answer in pairs]


def _continents(folder: Path) -> dict[str, Any]:
    known = [fact for fact in json.loads((folder / "facts.json").read_text()) if fact["relation"] == "continent"]
    pairs = [(fact["subject"], fact["object"]) for fact in known]
    return {"template": "{} is located on the continent of", "samples": _samples(pairs), "icl": False}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_jacobian_is_what_finite_differences_say(family: str, tmp_path: Path) -> None:
    model = of_family(family)
    module = copy.deepcopy(model._module).double()
    prompt = Prompt.of(model.tokenizer, "In the city of Paris there is", "Paris")
    with evaluating(module):
        sites = Sites.of(module)
        differ = Differentiator(sites, [-1, 0, sites.n_layers - 1], 24, Notebook(tmp_path, bar=False))
        tangent = differ.of(prompt)
        assert differ.error(prompt, tangent, 0) < 1e-3
        assert differ.error(prompt, tangent, -1) < 1e-3
    assert tangent.jacobians[0].abs().max() > 1e-3
    assert not tangent.jacobians[
        sites.n_layers - 1
    ].any()  # what the last block gives at one token has no part in another
    assert all(one.requires_grad for one in module.parameters())


def test_what_stands_before_the_subject_may_be_cached(tmp_path: Path) -> None:
    model = of_family("llama")
    prompt = Prompt.of(model.tokenizer, "In the city of Paris there is", "Paris")
    with evaluating(model):
        differ = Differentiator(Sites.of(model), [0, 1], 64, Notebook(tmp_path, bar=False))
        cached = differ.of(prompt)
        assert differ._cached(torch.tensor([prompt.ids]), prompt.last, cached.answer)[0] == prompt.last
        differ._cached = lambda ids, subject_last, answer: (0, None)  # type: ignore[method-assign]
        whole = differ.of(prompt)
    for layer in (0, 1):
        torch.testing.assert_close(cached.jacobians[layer], whole.jacobians[layer], rtol=1e-3, atol=1e-4)


def test_a_planted_affine_relation_is_faithful_and_its_inverse_edits(tmp_path: Path) -> None:
    model, pairs = planted.relation()
    params = {"template": "{} is", "samples": _samples(pairs), "icl": False, "betas": [1.0], "ranks": [4], "batch": 16}
    params |= {"layers": [-1, 0, 1, 2]}
    report = Notebook(tmp_path, bar=False)
    result = run(LRE, model, params, report)
    assert result.metric("faithfulness").value == 1
    assert result.metric("faithfulness_crossed").value == 1
    assert result.metric("bias_only").value <= 0.5
    assert result.metric("causality").value == 1
    assert result.metric("causality_swap").value == 1
    assert result.metric("causality_random").value <= 0.25
    table = result.table("faithfulness").rows
    assert [row[2] == 1 for row in table] == [
        True,
        True,
        False,
        False,
    ]  # block 1 has read the subject: later is too late
    kept = report.open(result.artifacts[0], "data")
    assert kept.config["layer"] == result.layer == -1
    assert int((torch.linalg.svdvals(kept.tensors["-1.J"]) > 0.1).sum()) == 4
    assert {row[3] for row in result.table("subjects").rows} == {"train", "heldout"}
    assert LRE.plot
    assert len(result.plot().axes) == 2


def test_the_last_block_has_no_step_and_says_so(tmp_path: Path) -> None:
    """Nothing reads what it gives at the subject, so that its J is 0 and has no inverse."""
    model, pairs = planted.relation(12, 2)
    params = {"template": "{} is", "samples": _samples(pairs), "n_train": 2, "icl": False, "betas": [1.0], "batch": 16}
    found = run(LRE, model, {**params, "layers": [-1, 2]}, Notebook(tmp_path, bar=False))
    assert len(found.warnings) == 1
    assert "J is 0 at [2]" in found.warnings[0]
    last = found.table("causality").rows[-1]
    assert (last[0], last[2]) == (2, 0)
    wish = torch.ones(3, 5)
    assert not inverted(wish, *torch.linalg.svd(torch.zeros(5, 5)), 4).any()


def test_a_step_is_that_of_the_inverse() -> None:
    J = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.0]))
    step = inverted(torch.ones(1, 4), *torch.linalg.svd(J), 4)
    torch.testing.assert_close(step, torch.tensor([[0.25, 0.5, 1, 0]]))
    step = inverted(torch.ones(1, 4), *torch.linalg.svd(J), 2)
    torch.testing.assert_close(step, torch.tensor([[0.25, 0.5, 0, 0]]))


def test_facts_that_were_learned(tmp_path: Path) -> None:
    for folder in (FACTS_GPT, FACTS_MAMBA):
        params = {**_continents(folder), "layers": [1, 5], "ranks": [20], "pairs": 24, "batch": 128}
        result = run(LRE, facts(folder), params, Notebook(tmp_path, bar=False))
        best, last = result.table("faithfulness").rows[0], result.table("faithfulness").rows[-1]
        assert best[2] > best[5]
        assert last[2] == pytest.approx(
            last[5]
        )  # the last block's state at the subject has no part in the answer: only b is left
        assert result.metric("causality").value > result.metric("causality_random").value + 0.1
        assert result.metric("jacobian_error").value < 2e-2


def test_examples_stand_before_the_query_and_its_own_is_left_out(tmp_path: Path) -> None:
    model, pairs = planted.relation(12, 2)
    params = {"template": "{} is", "samples": _samples(pairs), "n_train": 2, "pairs": 0, "betas": [1.0]}
    found = run(LRE, model, params, Notebook(tmp_path, bar=False))
    train = [row for row in found.table("subjects").rows if row[3] == "train"]
    assert sorted(found.prompt.splitlines()) == sorted(f"{row[0]} is {row[1]}" for row in train)
    assert not found.table("causality").rows
    one = _Relation(Sites.of(model), model.tokenizer, RelationParams(**params), Notebook(tmp_path, bar=False))
    samples = [Sample(subject=subject, object=answer) for subject, answer in pairs[:2]]
    assert one._before(samples[0], samples) == f"{pairs[1][0]} is {pairs[1][1]}\n"


def test_the_subject_is_where_the_template_has_it(tmp_path: Path) -> None:
    model, pairs = planted.relation(12, 2)
    subject = pairs[0][0]
    params = {"template": "{} is, as " + subject + " is", "samples": _samples(pairs), "n_train": 2, "icl": False}
    one = _Relation(Sites.of(model), model.tokenizer, RelationParams(**params), Notebook(tmp_path, bar=False))
    (query,) = one._asked([Sample(subject=subject, object=pairs[0][1])], [])
    assert query.prompt.first == 0


def test_layer_and_beta_are_chosen_where_they_are_not_measured() -> None:
    first, second = torch.tensor([1, 0, 1, 0]).bool(), torch.tensor([0, 1, 0, 1]).bool()
    grid = {(0, 1.0): {"faithfulness": first}, (1, 1.0): {"faithfulness": second}}
    assert crossed(grid).tolist() == [False, False, False, False]


def test_wrong_parameters_are_refused(tmp_path: Path) -> None:
    samples = _samples([("a", "b"), ("c", "d"), ("e", "f")])
    with pytest.raises(ValidationError, match=r"`template` has `\{\}` 0 times"):
        RelationParams(template="no place", samples=samples, n_train=1)
    with pytest.raises(ValidationError, match="leave none held out"):
        RelationParams(template="{} is", samples=samples)
    with pytest.raises(ValidationError, match="is there twice"):
        RelationParams(template="{} is", samples=[*samples, samples[0]], n_train=1)
    model, pairs = planted.relation(12, 2)
    params = {"template": "{} is", "samples": _samples(pairs), "n_train": 2, "icl": False, "layers": [7]}
    with pytest.raises(InvalidRequest, match="the model's blocks are 0 to 2"):
        run(LRE, model, params, Notebook(tmp_path, bar=False))


def test_what_it_would_cost_is_said() -> None:
    params = RelationParams(template="{} is", samples=_samples([("a", "b"), ("c", "d")]), n_train=1, batch=8)
    cost = LRE.estimate(params, ModelFacts(n_params=10_000, n_layers=3, hidden_size=32, vocab_size=50))
    assert cost.backwards == 4
    assert cost.tokens > 0
