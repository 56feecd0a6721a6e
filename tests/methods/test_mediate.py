"""`mediate`: a variable whose place and plane are known is found, a decoy is not, gradients rank as patches do."""

from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from mediated import countries, of_values
from pydantic import ValidationError
from small_models import FACTS_GPT, FACTS_MAMBA, facts, of_family

from interlace.methods import find
from interlace.methods.base import ModelFacts
from interlace.methods.mediate.spec import MediateParams
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared import capture
from interlace.methods.shared.ranking import spearman
from interlace.methods.shared.sites import Sites
from interlace.protocol.errors import InvalidRequest

MEDIATE = find("mediate")


def test_the_place_of_a_planted_variable_comes_first(tmp_path: Path) -> None:
    model, _, _ = planted.mediator()
    params = {"pairs": of_values(12, 0.9, 0), "mediator": {"family": "parts", "sites": ["attn_out", "mlp_out"]}}
    for effect in ("NIE", "NDE"):
        report = Notebook(tmp_path, bar=False)
        result = run(MEDIATE, model, {**params, "effect": effect}, report)
        rows = result.table("effects").rows
        total = result.metric("total_effect").value
        assert total < 0
        largest = {"NIE": rows[0], "NDE": rows[-1]}[effect]
        assert largest[:3] == ("attn_out", 1, 2)
        others = [row[4] for row in rows if row is not largest]
        if effect == "NIE":
            assert largest[4] == pytest.approx(total, rel=1e-3)
            assert max(map(abs, others)) < 1e-3
        else:
            assert abs(largest[4]) < 1e-3  # nothing of the effect is left without it
            assert all(one == pytest.approx(total, rel=1e-3) for one in others)
        assert result.rows == 2 * 4 * 3 * 12


def test_a_planted_plane_is_learned_and_a_decoy_and_random_weights_are_not(tmp_path: Path) -> None:
    model, plane, decoy = planted.mediator()
    report = Notebook(tmp_path, bar=False)
    mediator = {"family": "subspace", "layer": 1, "k": 2}
    params: dict[str, Any] = {"pairs": of_values(160, 0, 1), "mediator": mediator, "search": "das"}
    params |= {"steps": 150, "lr": 0.05, "batch": 40}
    result = run(MEDIATE, model, params, report)
    chance = result.metric("chance").value
    assert result.metric("iia", "test").value >= 0.95
    assert result.metric("iia", "test, the whole state").value == 1
    assert result.metric("iia", "test, random weights").value <= chance + 0.1
    assert result.metric("iia", "test, random directions").value <= 0.5
    basis = report.open(result.artifacts[0], "data").tensors["basis"]
    assert _degrees(basis, plane) <= 10

    # The clue can be read as well as the value where they agree, and moves nothing.
    state, values = _last_states(model)
    read = torch.linalg.lstsq(state @ decoy.mT, torch.nn.functional.one_hot(values, 4).float()).solution
    assert float(((state @ decoy.mT @ read).argmax(-1) == values).float().mean()) >= 0.95
    given = report.artifact("data", {"basis": decoy.contiguous()}, {})
    found = run(MEDIATE, model, {**params, "mediator": {**mediator, "basis": given}}, report)
    assert found.metric("iia", "test").value <= chance + 0.1
    assert not found.artifacts
    assert len(result.plot().axes) == 1


def test_what_is_learned_leans_towards_what_goes_along_with_the_variable(tmp_path: Path) -> None:
    model, plane, decoy = planted.mediator()
    mediator = {"family": "subspace", "layer": 1, "k": 2}
    params = {"pairs": of_values(160, 0.9, 1), "mediator": mediator, "search": "das", "steps": 150, "lr": 0.05}
    report = Notebook(tmp_path, bar=False)
    result = run(MEDIATE, model, {**params, "batch": 40, "random_weights": False}, report)
    assert result.metric("iia", "test").value >= 0.95
    basis = report.open(result.artifacts[0], "data").tensors["basis"]
    assert _degrees(basis, plane) > 10  # what both together move the answer by, cos^2 + cos sin, is most at 22.5
    assert float(torch.linalg.svdvals(basis @ decoy.mT).max()) > 0.2


def _degrees(basis: torch.Tensor, plane: torch.Tensor) -> float:
    """The largest principal angle."""
    return float(torch.rad2deg(torch.acos(torch.linalg.svdvals(basis @ plane.mT).clamp(max=1).min())))


def _last_states(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of prompts whose clue is their value."""
    prompts = [f"value{number % 4} clue{number % 4} is" for number in range(16)]
    place = Sites.of(model).place("resid_post", 1)
    with torch.no_grad(), capture.captured({0: place}) as states:
        model._module(input_ids=torch.tensor(model.tokenizer(prompts).input_ids))
    state = states[0][:, -1]
    return state - state.mean(0), torch.arange(16) % 4


@pytest.mark.parametrize("folder", [FACTS_GPT, FACTS_MAMBA], ids=["gpt2", "mamba"])
def test_gradients_are_held_against_patches(folder: Path, tmp_path: Path) -> None:
    site = "mlp_out" if folder == FACTS_GPT else "mixer_out"
    params: dict[str, Any] = {"pairs": countries(4), "check": 30, "mediator": {"sites": [site], "family": "parts"}}
    model = facts(folder)
    exact = run(MEDIATE, model, params, Notebook(tmp_path, bar=False))
    truth = {row[:4]: row[4] for row in exact.table("effects").rows}
    for search in ("atp", "ig"):
        result = run(MEDIATE, model, {**params, "search": search, "ig_steps": 4}, Notebook(tmp_path, bar=False))
        quality = result.metric("ranking_quality")
        assert quality.n == min(30, len(truth))
        assert quality.value >= 0.6
        for row in result.table("effects").rows:
            assert row[7] is None or row[7] == pytest.approx(truth[row[:4]], abs=1e-4)
    assert len(result.plot().axes) == 2


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_heads_and_neurons_add_up_to_what_small_steps_do(family: str, tmp_path: Path) -> None:
    """A gradient at no distance is exact: the parts of a state's step add up to the whole's."""
    model = of_family(family)
    prompt = {"answer": " Paris", "source_answer": " two"}
    pairs = [
        {"base": "The city is", "source": "The city of", **prompt},
        {"base": "two is", "source": "two plus two is", **prompt},
    ]
    with pytest.raises(InvalidRequest, match="all must have as many"):
        run(MEDIATE, model, {"pairs": pairs}, Notebook(tmp_path, bar=False))
    params: dict[str, Any] = {"pairs": pairs[:1] * 2, "search": "atp", "check": 2}
    sums = {}
    for name, mediator in {
        "neurons": {"family": "neurons", "site": "resid_post", "layers": [0], "position": -1},
        "parts": {"family": "parts", "layers": [0], "positions": [-1]},
    }.items():
        result = run(MEDIATE, model, {**params, "mediator": mediator}, Notebook(tmp_path, bar=False))
        sums[name] = sum(row[4] for row in result.table("effects").rows)
    assert sums["neurons"] == pytest.approx(sums["parts"], rel=1e-3, abs=1e-5)
    heads = run(MEDIATE, model, {**params, "mediator": {"family": "heads"}}, Notebook(tmp_path, bar=False))
    assert {row[0] for row in heads.table("effects").rows} == {f"head:{number}" for number in range(4)}


def test_what_a_patch_does_is_what_a_trace_does(tmp_path: Path) -> None:
    model = of_family("llama")
    pair = {"base": "The city is", "source": "The city of", "answer": " Paris", "source_answer": " two"}
    params = {"pairs": [pair] * 2, "mediator": {"family": "parts", "layers": [1], "positions": [-1]}}
    result = run(MEDIATE, model, params, Notebook(tmp_path, bar=False))
    answers = [model.tokenizer(one, add_special_tokens=False).input_ids[0] for one in (" Paris", " two")]
    with torch.no_grad():
        with model.trace(pair["source"]):
            states = model.model.layers[1].output.save()
        with model.trace(pair["base"]):
            plain = model.lm_head.output[0, -1].save()
        with model.trace(pair["base"]):
            model.model.layers[1].output[:, -1] = states[:, -1]
            moved = model.lm_head.output[0, -1].save()
    effect = float((moved - plain)[answers[0]] - (moved - plain)[answers[1]])
    assert result.table("effects").rows[0][4] == pytest.approx(effect, abs=1e-4)


def test_ranks() -> None:
    assert spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 15.0])) == pytest.approx(0.5)
    assert spearman(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 5.0])) == pytest.approx(1)
    assert spearman(torch.ones(3), torch.arange(3.0)) != spearman(torch.ones(3), torch.arange(3.0))


def test_wrong_parameters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="goes with"):
        MediateParams(pairs=of_values(2, 1, 0), search="das")  # type: ignore[arg-type]
    model, _, _ = planted.mediator()
    report = Notebook(tmp_path, bar=False)
    params = {"pairs": of_values(4, 1, 0)}
    with pytest.raises(InvalidRequest, match=r"48 patched rows, and `params\.budget` is 5"):
        run(MEDIATE, model, {**params, "budget": 5}, report)
    with pytest.raises(InvalidRequest, match="position 9 is not in prompts of 3 tokens"):
        run(MEDIATE, model, {**params, "mediator": {"family": "parts", "positions": [9]}}, report)
    mamba = of_family("mamba")
    pair = {"base": "The city is", "source": "The city of", "answer": " Paris", "source_answer": " two"}
    with pytest.raises(InvalidRequest, match="A mamba has no heads"):
        run(MEDIATE, mamba, {"pairs": [pair] * 2, "mediator": {"family": "heads"}}, report)
    ssm = {"family": "parts", "sites": ["ssm_out"]}
    with pytest.raises(InvalidRequest, match="A gradient of `ssm_out`"):
        run(MEDIATE, mamba, {"pairs": [pair] * 2, "mediator": ssm, "search": "atp"}, report)


def test_what_it_would_cost_is_said() -> None:
    known = ModelFacts(n_params=9, n_layers=3, hidden_size=32, vocab_size=50)
    all_of_it = MEDIATE.estimate(MediateParams(pairs=of_values(4, 1, 0)), known)  # type: ignore[arg-type]
    gradient = MEDIATE.estimate(MediateParams(pairs=of_values(4, 1, 0), search="atp", check=2), known)  # type: ignore[arg-type]
    assert gradient.backwards == 1
    assert gradient.forwards < all_of_it.forwards
