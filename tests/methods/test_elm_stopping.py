"""`elm.erase` that stops where held-back questions are at chance: when, with which weights, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from erasing import TOPICS, Kept, params, questions
from nnsight.modeling.transformers import TransformersModel
from pydantic import ValidationError
from transformers import AutoTokenizer

from interlace.methods import notebook
from interlace.methods.base import ModelFacts, Result
from interlace.methods.elm.spec import SPECS, EraseParams

ERASE = SPECS[0]
#: Facts by turns: what is held back is not measured.
_ERASED, _RETAINED = questions("healers", 1), questions("boats", 1)
#: Beside the right word, words that deflect, which this model learns to say in a few updates.
_HELD = [
    {"question": one["question"], "choices": [one["choices"][one["answer"]], "music", "lunch", "weather"], "answer": 0}
    for one in _ERASED["choices"][::2]
]
HELD = {"erased": _HELD, "retained": {"cloze": _RETAINED["cloze"][::2]}, "every": 2, "max_drop": 1}
MEASURED = {
    "erased": {"choices": _ERASED["choices"][1::2]},
    "retained": {"cloze": _RETAINED["cloze"][1::2]},
    "generations": 0,
    "probes": False,
}
SLOW = {"lr": 2e-3, "evaluation": MEASURED}


@pytest.fixture(scope="module")
def topics() -> Any:
    tokenizer = AutoTokenizer.from_pretrained(TOPICS)
    return TransformersModel(str(TOPICS), task="text-generation", dispatch=True, tokenizer=tokenizer)


def looks(result: Result) -> list[dict[str, Any]]:
    table = result.table("looks")
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_it_stops_at_chance_with_the_weights_of_the_look_nearest_to_it(topics: Any, tmp_path: Path) -> None:
    whole = Kept(tmp_path / "stopped", at=4)
    stopped = notebook.run(ERASE, topics, params(steps=200, stop_at_chance=HELD, **SLOW), whole)
    found = looks(stopped)
    assert [look["step"] for look in found] == list(range(2, found[-1]["step"] + 1, 2))
    assert len(found) > 3
    assert all(look["mcq_acc"] > 0.25 for look in found[:-1])
    assert found[-1]["mcq_acc"] <= 0.25
    assert len(stopped.table("losses").rows) == found[-1]["step"] < 200
    nearest = min(found, key=lambda look: abs(look["mcq_acc"] - 0.25))
    assert stopped.metric("kept_step", "").value == nearest["step"]
    assert stopped.metric("mcq_acc", "held_back/after").value == nearest["mcq_acc"]
    assert stopped.metric("mcq_chance_p", "held_back/after").value == nearest["mcq_chance_p"]
    # The adapter is the one of a run that ends there, and a run that was cut goes on with what it has seen.
    plain = Kept(tmp_path / "plain")
    same = notebook.run(ERASE, topics, params(steps=nearest["step"], **SLOW), plain)
    one, other = (report.open(run.artifacts[0]).tensors for report, run in ((whole, stopped), (plain, same)))
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    assert stopped.metric("mcq_acc", "erased/after") == same.metric("mcq_acc", "erased/after")
    again = Kept(tmp_path / "again", found=whole.kept)
    resumed = notebook.run(ERASE, topics, params(steps=200, stop_at_chance=HELD, **SLOW), again)
    assert resumed.table("looks") == stopped.table("looks")
    assert resumed.metrics == stopped.metrics


def test_of_looks_that_lost_too_much_none_is_kept_unless_all_did(topics: Any, tmp_path: Path) -> None:
    held = HELD | {"every": 1, "max_drop": 0.2}
    given = SLOW | {"lambdas": (1, 0, 1), "lr": 5e-3}
    whole = Kept(tmp_path / "whole", at=3)
    result = notebook.run(ERASE, topics, params(steps=30, stop_at_chance=held, **given), whole)
    found = looks(result)
    within = [look for look in found if look["retained_drop"] <= 0.2]
    assert 0 < len(within) < len(found)
    assert [look["within_max_drop"] for look in found] == [look in within for look in found]
    best = min(within, key=lambda look: abs(look["mcq_acc"] - 0.25))
    assert result.metric("kept_step", "").value == best["step"] == found[-2]["step"] == 3
    # Its weights are those of that update, also where they come out of a checkpoint.
    again = Kept(tmp_path / "again", found=whole.kept)
    resumed = notebook.run(ERASE, topics, params(steps=30, stop_at_chance=held, **given), again)
    plain = Kept(tmp_path / "plain")
    ended = notebook.run(ERASE, topics, params(steps=3, **given), plain)
    expected = plain.open(ended.artifacts[0]).tensors
    for report, of in ((whole, result), (again, resumed)):
        tensors = report.open(of.artifacts[0]).tensors
        assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    none = params(steps=2, stop_at_chance=held | {"every": 2, "max_drop": 0}, **given | {"lr": 5e-2})
    result = notebook.run(ERASE, topics, none, Kept(tmp_path / "none"))
    assert any("no look was within max_drop 0 of what is to stay" in warning for warning in result.warnings)


def test_a_run_that_does_not_come_to_chance_says_so(topics: Any, tmp_path: Path) -> None:
    given = params(steps=3, stop_at_chance=HELD, **SLOW | {"lambdas": (0, 1, 0)})
    result = notebook.run(ERASE, topics, given, Kept(tmp_path))
    assert [look["step"] for look in looks(result)] == [2, 3]
    assert any("after 3 updates 1.00 of the held-back questions" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"erased": []}, "stop_at_chance.erased"),
        ({"retained": {}}, "stop_at_chance.erased"),
        ({"erased": _ERASED["choices"][:3]}, "stop_at_chance.erased and evaluation.erased share 1 questions"),
        (
            {"erased": HELD["erased"], "retained": {"cloze": MEASURED["retained"]["cloze"]}},
            "stop_at_chance.retained and evaluation.retained share 54 questions",
        ),
        ({"erased": HELD["erased"], "every": 0}, "stop_at_chance.every"),
    ],
)
def test_held_back_questions_are_there_and_are_not_measured(held: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EraseParams.model_validate(params(stop_at_chance=held, evaluation=MEASURED))


def test_the_estimate_has_the_looks(topics: Any, tmp_path: Path) -> None:
    facts = ModelFacts(n_params=220_000, n_layers=4, hidden_size=64, vocab_size=len(topics.tokenizer))
    given = params(steps=4, stop_at_chance=HELD | {"every": 1}, **SLOW)
    told = ERASE.estimate(EraseParams.model_validate(given), facts)
    report = Kept(tmp_path)
    notebook.run(ERASE, topics, given, report)
    assert 0.5 < told.forwards / report.cost["forwards"] < 2
