"""`steer`: a planted direction does what it should, random ones do not, and what it costs is said."""

from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from pydantic import ValidationError
from small_models import of_family

from interlace.methods import find
from interlace.methods.base import ModelFacts
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared import capture
from interlace.methods.shared.sites import Sites
from interlace.methods.steering.spec import SteerParams
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

STEER = find("steer")


def _params(pairs: list[tuple[str, str]], **changes: Any) -> dict[str, Any]:
    """From object1 to object0."""
    of = {answer: [f"{subject} is" for subject, said in pairs if said == answer] for _, answer in pairs}
    return {
        "layer": 1,
        "positive": of["object0"][:4],
        "negative": of["object1"][:4],
        "scales": [-1, 1, 2],
        "prompts": [{"prompt": one, "wanted": "object0", "other": "object1"} for one in of["object1"][4:]],
        "neutral": [f"{subject} is {answer}" for subject, answer in pairs if answer == "object2"],
        **changes,
    }


def test_a_difference_of_means_turns_answers_and_random_directions_do_not(tmp_path: Path) -> None:
    model, pairs = planted.relation()
    report = Notebook(tmp_path, bar=False)
    result = run(STEER, model, _params(pairs), report)
    rows = {(row[0], row[1]): row for row in result.table("scales").rows}
    effect = {scale: rows[scale, "direction"][2] for scale in (-1, 1, 2)}
    assert effect[-1] < 0 < effect[1] < effect[2]
    assert rows[1, "direction"][5] == 1
    random = [rows[1, f"random {number}"][2] for number in range(3)]
    assert max(map(abs, random)) < effect[1] / 2
    assert result.metric("harm", "scale 2").value > 0
    assert len(result.plot().axes) == 2

    kept = report.open(result.artifacts[0], "data")
    added = kept.tensors["direction"]
    place = Sites.of(model).place("resid_post", 1)
    prompt = _params(pairs)["prompts"][0]["prompt"]
    ids = torch.tensor([model.tokenizer(prompt).input_ids])
    with torch.no_grad(), capture.altered([(place, lambda state: state + 2 * added)]):
        said = model._module(input_ids=ids).logits[0, -1].argmax()
    assert model.tokenizer.decode([said]) == "object0"

    assert [table.name for table in result.tables] == ["scales"]
    written = run(STEER, model, _params(pairs, scales=[2], write=1), report).table("texts").rows
    prompts = [one["prompt"] for one in _params(pairs)["prompts"]]
    assert [row[:2] for row in written] == [(scale, prompt) for scale in (0, 2) for prompt in prompts]
    assert {row[2] for row in written if row[0] == 0} == {"object1"}
    assert [row[2] for row in written if row[1] == prompt] == ["object1", "object0"]

    again = run(STEER, model, _params(pairs, positive=None, negative=None, direction=result.artifacts[0]), report)
    assert again.table("scales") == result.table("scales")
    assert model._module.transformer.h[1]._forward_hooks.keys() == model._module.transformer.h[0]._forward_hooks.keys()


def test_a_trace_with_the_direction_does_the_same(tmp_path: Path) -> None:
    model, pairs = planted.relation()
    report = Notebook(tmp_path, bar=False)
    params = _params(pairs, scales=[2])
    result = run(STEER, model, params, report)
    direction = report.open(result.artifacts[0], "data").tensors["direction"]
    prompt = params["prompts"][0]["prompt"]
    with torch.no_grad():
        with model.trace(prompt):
            block = model.transformer.h[1]
            block.output = block.output + 2 * direction
            said = model.lm_head.output[0, -1].argmax().save()
    assert model.tokenizer.decode([int(said)]) == "object0"


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_on_every_family_a_strength_of_nothing_changes_nothing(family: str, tmp_path: Path) -> None:
    params = {
        "layer": 1,
        "site": "mixer_out" if family == "mamba" else "mlp_out",
        "positive": ["The city of Paris"],
        "negative": ["Two plus two"],
        "position": "mean",
        "normalise": True,
        "scales": [0, 1],
        "controls": 1,
        "prompts": [{"prompt": "The capital is", "wanted": "Paris", "other": "two"}],
        "neutral": ["The quick brown fox jumps"],
    }
    result = run(STEER, of_family(family), params, Notebook(tmp_path, bar=False))
    assert result.norm == pytest.approx(result.states_norm, rel=1e-4)
    still, moved = (result.table("scales").rows[number] for number in (0, 2))
    assert (still[0], moved[0]) == (0, 1)
    assert still[2] == still[6] == 0
    assert moved[2] != 0
    assert moved[6] != 0


def test_wrong_parameters_are_refused(tmp_path: Path) -> None:
    model, pairs = planted.relation(24, 3)
    with pytest.raises(ValidationError, match="or `direction`, and not both"):
        SteerParams(**_params(pairs, negative=None))
    report = Notebook(tmp_path, bar=False)
    with pytest.raises(InvalidRequest, match="no direction"):
        run(STEER, model, _params(pairs, negative=_params(pairs)["positive"]), report)
    wrong = report.artifact("data", {"direction": torch.zeros(3)}, {})
    with pytest.raises(InvalidArtifact, match="must have the tensor `direction` of 32 numbers"):
        run(STEER, model, _params(pairs, positive=None, negative=None, direction=wrong), report)


def test_what_it_would_cost_is_said() -> None:
    _, pairs = planted.relation(24, 3)
    cost = STEER.estimate(
        SteerParams(**_params(pairs)), ModelFacts(n_params=9, n_layers=3, hidden_size=32, vocab_size=50)
    )
    assert cost.forwards >= 13
