"""`mediate`: features of a dictionary, sets of mediators, and what they leave alone, where all of it is known."""

from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from mediated import countries, of_values
from pydantic import ValidationError
from small_models import FACTS_MAMBA, facts, of_family

from interlace.methods import find
from interlace.methods.mediate.basis import Coded, Plain, Unit, spread
from interlace.methods.mediate.families import features
from interlace.methods.mediate.masks import Masked, Schedule
from interlace.methods.mediate.patching import Patcher, Runs
from interlace.methods.mediate.spec import Features, MediateParams
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.sites import Sites
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

MEDIATE = find("mediate")
#: Ends of the axes of a plane: features 0 to 3 are of the variable's, 4 to 7 of the clue's.
ENDS = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


def _dictionary(report: Notebook, plane: torch.Tensor, decoy: torch.Tensor, **more: Any) -> str:
    rows = torch.cat([ENDS @ plane, ENDS @ decoy])
    weights = {"W_enc": rows.mT.contiguous(), "W_dec": rows, "b_enc": torch.zeros(8), "b_dec": torch.zeros(32)}
    return report.artifact("sae", weights, {"architecture": "standard", "metadata": more})


def _same_value(n: int) -> list[dict[str, str]]:
    """Pairs whose clue alone differs."""
    found = []
    for number in range(n):
        value, clue = number % 4, number // 4 % 4
        prompts = [f"value{value} clue{one} is" for one in (clue, (clue + 1 + number % 3) % 4)]
        answers = {"answer": f"answer{value}", "source_answer": f"answer{(value + 1) % 4}"}
        found.append({"base": prompts[0], "source": prompts[1], **answers})
    return found


def test_features_of_a_planted_plane_carry_the_variable_and_others_do_not(tmp_path: Path) -> None:
    model, plane, decoy = planted.mediator()
    report = Notebook(tmp_path, bar=False)
    sae = _dictionary(report, plane, decoy, site="resid_post", layer=1)
    params: dict[str, Any] = {"pairs": of_values(24, 0, 0), "mediator": {"family": "features", "sae": sae}}
    suites = [{"name": "clue", "pairs": _same_value(16)}, {"name": "value", "pairs": of_values(16, 0, 9)}]
    exact = run(MEDIATE, model, {**params, "off_target": suites}, report)
    effects = {row[3]: row[4] for row in exact.table("effects").rows}
    assert set(effects) == {*range(8), -1}
    total = exact.metric("total_effect").value
    assert min(abs(effects[number]) for number in range(4)) > 0.1 * abs(total)
    assert max(abs(effects[number]) for number in (4, 5, 6, 7, -1)) < 1e-2 * abs(total)  # through the last norm
    # What reads the variable answers to none of the clue, and as much as before to other values: the control.
    assert exact.metric("selectivity", "clue").value == pytest.approx(
        next(row[5] for row in exact.table("selectivity").rows), abs=1e-3
    )
    assert exact.metric("selectivity", "clue").value > 0.1
    assert abs(exact.metric("selectivity", "value").value) < 0.15
    assert exact.warnings == ("`off_target` 'clue' has no effect of its own: shares are of the main one.",)
    atp = run(MEDIATE, model, {**params, "search": "atp", "check": 9}, report)
    assert atp.metric("ranking_quality").value >= 0.8
    assert atp.metric("slope").value == pytest.approx(1, abs=0.1)
    most = run(MEDIATE, model, {**params, "mediator": {**params["mediator"], "most": 2, "position": -1}}, report)
    assert len(most.table("effects").rows) == 3


def test_all_features_and_the_error_are_the_state(tmp_path: Path) -> None:
    model, plane, decoy = planted.mediator()
    report = Notebook(tmp_path, bar=False)
    sites = Sites.of(model)
    runs = Runs.of(model.tokenizer, MediateParams(pairs=of_values(6, 0, 3)).pairs)  # type: ignore[arg-type]
    asked = Features(family="features", sae=_dictionary(report, plane, decoy), site="resid_post", layer=0)
    units, coded = features(sites, asked, runs, 8, report, into_source=False)
    assert units[-1] == Unit("resid_post", 0, None, -1)
    patcher = Patcher(sites, runs, 8, report, basis=coded)
    (own,), (donor,) = (patcher.states([sites.place("resid_post", 1)], range(6), into=into) for into in (True, False))
    whole = torch.ones(own.shape[1], 9)
    torch.testing.assert_close(coded.moved(own, donor, whole), donor, rtol=0, atol=1e-5)
    torch.testing.assert_close(coded.moved(own, donor, whole * 0), own, rtol=0, atol=1e-6)
    slope = torch.randn(own.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = coded.parts(slope, own.double(), donor.double())
    torch.testing.assert_close(parts.sum(-1), Plain().parts(slope, own.double(), donor.double()).sum(-1))
    assert isinstance(coded, Coded)
    with pytest.raises(InvalidArtifact, match="is of states of 32 numbers; mlp_act of layer 0 has 128"):
        features(sites, asked.model_copy(update={"site": "mlp_act"}), runs, 8, report, into_source=False)
    with pytest.raises(InvalidRequest, match="does not say whose states"):
        features(sites, asked.model_copy(update={"layer": None}), runs, 8, report, into_source=False)


def test_a_weight_is_where_its_units_are() -> None:
    values = torch.tensor([0.5, 1.0])
    at_one = spread([Unit("resid_post", 0, 0, 2), Unit("resid_post", 0, 1, -1)], values, 2, 4)
    assert at_one.tolist() == [[0, 0, 0.5, 0], [0, 0, 0, 1]]
    assert spread([Unit("resid_post", 0, None)], values[:1], 2, 4).tolist() == [[0.5], [0.5]]
    assert spread([Unit("resid_post", 0, 1), Unit("resid_post", 0, 0)], values, 2, 4).tolist() == [[1], [0.5]]


def test_a_mask_finds_the_planted_place_alone(tmp_path: Path) -> None:
    model, _, _ = planted.mediator()
    report = Notebook(tmp_path, bar=False)
    params: dict[str, Any] = {"pairs": of_values(64, 0, 1), "search": "dbm", "steps": 60, "lr": 0.05, "batch": 16}
    params["mediator"] = {"family": "parts", "sites": ["attn_out", "mlp_out"]}
    params["off_target"] = [{"name": "clue", "pairs": _same_value(16)}]
    result = run(MEDIATE, model, params, report)
    assert result.table("mask").rows == (("attn_out", 1, 2, None),)
    assert result.metric("iia", "test").value == result.metric("iia", "test, every unit").value == 1
    assert result.metric("iia", "test, random units").value <= 0.5
    assert result.metric("iia", "test, random weights").value <= result.metric("chance").value + 0.1
    assert result.metric("units").n == 24
    assert result.metric("selectivity", "clue").value == pytest.approx(1, abs=1e-3)
    opened = report.open(result.artifacts[0], "data")
    assert opened.config["units"][int(opened.tensors["mask"].argmax())] == ["attn_out", 1, 2, None]
    assert len(result.table("search").rows) == 60
    assert len(result.plot().axes) == 2
    nothing = run(MEDIATE, model, {**params, "sparsity": 1000, "random_weights": False}, report)
    assert any(one.startswith("The mask has no unit left") for one in nothing.warnings)
    assert nothing.metric("effect").value == 0


def test_a_mask_over_features_leaves_out_the_clue(tmp_path: Path) -> None:
    model, plane, decoy = planted.mediator()
    report = Notebook(tmp_path, bar=False)
    sae = _dictionary(report, plane, decoy, site="resid_post", layer=1)
    params: dict[str, Any] = {"pairs": of_values(64, 0, 1), "search": "dbm", "steps": 60, "lr": 0.05, "batch": 16}
    params |= {"mediator": {"family": "features", "sae": sae, "position": -1}, "random_weights": False}
    result = run(MEDIATE, model, params, report)
    assert {row[3] for row in result.table("mask").rows} == {0, 1, 2, 3}
    assert result.metric("iia", "test").value == 1


def test_a_mask_on_mamba_is_a_patch_where_it_is_one(tmp_path: Path) -> None:
    model = facts(FACTS_MAMBA)
    sites = Sites.of(model)
    report = Notebook(tmp_path, bar=False)
    runs = Runs.of(model.tokenizer, MediateParams(pairs=countries(3)).pairs)  # type: ignore[arg-type]
    last = sites.n_layers - 1
    units = [Unit("mixer_out", layer, None) for layer in range(sites.n_layers)]
    patcher = Patcher(sites, runs, 4, report)
    masked = Masked(patcher, units)
    one = torch.zeros(len(units))
    one[last] = 1
    with torch.no_grad():
        torch.testing.assert_close(masked.margins(one), patcher.exact(units[last:])[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(masked.margins(one * 0), patcher.margins(runs.base), rtol=0, atol=1e-4)
    schedule = Schedule(3, 0.1, 0.0, (1.0, 0.1))
    assert [schedule.at(step)[0] for step in (0, 2)] == pytest.approx([1.0, 0.1])
    masked.learned([0, 1, 2], schedule, 0)
    assert masked.curve[-1][1] < masked.curve[0][1]


def test_what_goes_with_what(tmp_path: Path) -> None:
    pairs = of_values(4, 1, 0)
    for wrong in ({"search": "dbm"}, {"off_target": [{"name": "x", "pairs": pairs}]}):
        with pytest.raises(ValidationError, match="go with `effect: NIE`"):
            MediateParams(pairs=pairs, effect="NDE", **wrong)  # type: ignore[arg-type]
    model = of_family("llama")
    pair = {"base": "The city is", "source": "The city of", "answer": " Paris", "source_answer": " two"}
    longer = {**pair, "base": "The city is is", "source": "The city of is"}
    params = {"pairs": [pair] * 2, "off_target": [{"name": "longer", "pairs": [longer] * 2}]}
    with pytest.raises(InvalidRequest, match="mediators of single tokens need as many"):
        run(MEDIATE, model, params, Notebook(tmp_path, bar=False))
    with pytest.raises(InvalidRequest, match="and off-target pairs are"):
        run(MEDIATE, model, {**params, "budget": 1}, Notebook(tmp_path, bar=False))
    whole = {"family": "parts", "positions": "all"}
    done = run(MEDIATE, model, {**params, "mediator": whole, "selected": 2}, Notebook(tmp_path, bar=False))
    assert len(done.table("selectivity").rows) == 2
