"""What `elm.erase` makes of questions that tie, that have no room, and that its model cannot be asked."""

from pathlib import Path
from typing import Any

import pytest
from erasing import PREFIXES, TOPICS, params
from nnsight.modeling.transformers import TransformersModel
from pydantic import ValidationError
from transformers import AutoTokenizer

from interlace.methods import find, notebook
from interlace.methods.elm import metrics
from interlace.methods.elm.language import Language
from interlace.methods.elm.spec import EraseParams, Evaluation, Question
from interlace.methods.notebook import Notebook
from interlace.protocol.errors import InvalidRequest

ERASE = find("elm.erase")
SHORT = {"question": "expert", "choices": ["expert", "novice"], "answer": 0}
#: 61 tokens: with an answer it has room in the model's 64, and behind a prefix it has none.
LONG = {**SHORT, "question": "expert " * 61}
TOO_LONG = {**SHORT, "question": "expert " * 64}


@pytest.fixture(scope="module")
def topics() -> Any:
    tokenizer = AutoTokenizer.from_pretrained(TOPICS)
    return TransformersModel(str(TOPICS), task="text-generation", dispatch=True, tokenizer=tokenizer)


def test_equal_choices_are_not_all_right(topics: Any) -> None:
    """What a model in 16 bits finds equally likely, and what is no number, is right by its place alone."""
    assert [metrics._rank([2.0, 2.0, 1.0], answer) for answer in range(3)] == [0, 1, 2]
    assert [metrics._rank([float("nan")] * 3, answer) for answer in range(3)] == [2, 2, 2]
    same = [Question(question="expert", choices=("a", "a", "a", "a"), answer=answer) for answer in range(4)]
    chosen = metrics.choose(Language.of(topics, Notebook(bar=False)), same, Evaluation(scoring="answers"))
    assert (chosen.right, chosen.ranks) == ([True, False, False, False], [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"evaluation": {"erased": {"choices": [LONG]}}},
            "The longest question of `evaluation.erased` needs rows of 66 tokens; the model takes at most 64",
        ),
        ({"evaluation": {"retained": {"choices": [TOO_LONG]}}}, "The longest question of `evaluation.retained` needs"),
        ({"stop_at_chance": {"erased": [TOO_LONG]}}, "The longest question of `stop_at_chance.erased` needs rows"),
        (
            {"evaluation": {"erased": {"choices": [SHORT]}, "scoring": "letters"}},
            "one token for several of the letters A, B",
        ),
    ],
)
def test_questions_that_cannot_be_asked_are_named(
    topics: Any, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    few = {"generations": 0, "erased": {}, "retained": {}} | changes.get("evaluation", {})
    given = {**params(steps=1), **changes}
    with pytest.raises(InvalidRequest, match=said):
        notebook.run(
            ERASE, topics, {**given, "evaluation": {"scoring": "answers"} | few}, Notebook(tmp_path, bar=False)
        )


def test_an_answer_of_no_letters_is_refused() -> None:
    nothing = {"choices": [{"question": "q", "choices": ["a", ""], "answer": 0}]}
    with pytest.raises(ValidationError, match="at least 1 character"):
        EraseParams.model_validate(
            {"concept": PREFIXES, "concept_texts": ["a"], "retain_texts": ["b"], "evaluation": {"erased": nothing}}
        )


def test_an_empty_text_is_none(topics: Any, tmp_path: Path) -> None:
    """There would be nothing to write after it."""
    evaluation = {"generations": 1, "generation_tokens": 3}
    texts = ["", " ", params()["concept_texts"][0]]
    given = {**params(steps=1, concept_texts=texts), "evaluation": evaluation}
    assert notebook.run(ERASE, topics, given, Notebook(tmp_path, bar=False)).artifacts
