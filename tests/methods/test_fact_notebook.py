"""Promise: a notebook without weights finds a fact in a hosted model, changes it, and leaves the rest as it was."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import running
import subprocess_client
from small_models import FACTS_GPT

ROOT = Path(__file__).parents[2]
_FACT, _REWORDED = "The capital of Vietnam is", "The parliament of Vietnam meets in"
_NEIGHBOUR, _UNRELATED = "The capital of Japan is", "The profession of Kasimir Quackenbush is"


@pytest.fixture(scope="module")
def shown(home: Path) -> Iterator[list[str]]:
    """The lines that the notebook prints, run against a server that hosts the model."""
    models = [{"source": str(FACTS_GPT), "task": "text-generation", "threads": 1}]
    with running.interlace(home, {"runtime": "process", "models": models}, seconds=300) as server:
        file = ROOT / "examples" / "find_and_edit_a_fact.ipynb"
        yield subprocess_client.run(server.url, ROOT / "tests" / "notebooks.py", str(file)).splitlines()


def _told(shown: list[str], start: str) -> list[str]:
    """What stands after ``start`` in the lines that begin so."""
    return [line.removeprefix(start).strip() for line in shown if line.startswith(start)]


def test_the_fact_is_found_in_the_first_blocks_and_at_the_last_token(shown: list[str]) -> None:
    effects = {
        (state, token): ast.literal_eval(_told(shown, f"{state:10} {token:12}")[0])
        for state in ("resid_post", "attn_out", "mlp_out")
        for token in ("prefix", "subject_last", "further", "last")
    }
    name = effects["resid_post", "subject_last"]
    assert name[0] > 0.2
    assert name[-1] == 0
    assert max(map(abs, [*effects["resid_post", "prefix"], *effects["resid_post", "further"]])) < 0.05
    assert effects["resid_post", "last"][-1] == 1
    assert effects["mlp_out", "subject_last"][0] > effects["attn_out", "subject_last"][0] + 0.2
    assert min(effects["mlp_out", "last"]) > 0.4
    assert effects["attn_out", "last"][0] > 0.8


def test_the_answer_hears_the_name_early(shown: list[str]) -> None:
    subject, prefix, further = (
        ast.literal_eval(_told(shown, f"{name:8} ")[0]) for name in ("subject", "prefix", "further")
    )
    assert min(subject[:2]) < -0.4
    assert subject[-1] > -0.05
    assert min(prefix) < -0.3
    assert min(further) > -0.1


def test_the_edit_changes_this_fact_and_the_controls_do_not(shown: list[str]) -> None:
    (right,), (late,), (chance,) = (
        [ast.literal_eval(line) for line in found]
        for found in (
            [line for line in shown if line.startswith("{'ES'")],
            _told(shown, "last block "),
            _told(shown, "random key "),
        )
    )
    assert right["ES"] == right["PS"] == right["unrelated"] == 1
    assert right["NS"] > 0.95
    assert right["other_relations"] < 1
    assert (late["ES"], late["unrelated"]) == (0, 1)
    assert chance["unrelated"] < 0.3


def test_traces_with_the_edit_see_it_and_those_without_do_not(shown: list[str]) -> None:
    fact, reworded, neighbour, unrelated = (
        [line.replace("->", "").split() for line in _told(shown, prompt)]
        for prompt in (_FACT, _REWORDED, _NEIGHBOUR, _UNRELATED)
    )
    before, edited = fact[1], fact[2]  # the first line is of the list of facts
    assert before[0] == "Hanoi"
    assert (edited[0], edited[2]) == ("Hanoi", "Rome")
    assert (reworded[1][0], reworded[1][2]) == ("Hanoi", "Rome")
    assert (neighbour[1][0], neighbour[1][2]) == ("Tokyo", "Tokyo")
    assert (unrelated[1][0], unrelated[1][2]) == ("engineer", "engineer")
    assert unrelated[2][0] != "engineer", "a random key spares nothing"
    assert shown[-1] == "True", "the hosted model is as it was"
