"""Where a prompt's subject is, in tokens."""

from pathlib import Path
from typing import Any

import pytest
from small_models import FACTS_MAMBA, facts, of_family

from interlace.methods import find
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.prompts import Prompt, first_token
from interlace.protocol.errors import InvalidRequest


def test_the_tokens_of_the_subject_and_the_classes_of_all() -> None:
    tokenizer = facts(FACTS_MAMBA).tokenizer
    text, subject = "By profession Nerys Kettleburn is a", "Nerys Kettleburn"
    prompt = Prompt.of(tokenizer, text, subject)
    assert tokenizer.decode(prompt.ids[prompt.first : prompt.last + 1]).strip() == subject
    assert tokenizer.decode(prompt.ids) == text
    classes = prompt.classes()
    assert [classes.count(name) for name in ("subject_first", "subject_last", "last")] == [1, 1, 1]
    assert classes.index("subject_last") == prompt.at("subject_last") == prompt.last
    assert prompt.positions("subject") == list(range(prompt.first, prompt.last + 1))
    assert set(prompt.positions("all")) == {
        *prompt.positions("subject"),
        *prompt.positions("not_subject"),
        prompt.at("last"),
    }


def test_a_subject_that_stands_twice_is_the_last_or_where_the_template_has_it() -> None:
    tokenizer = facts(FACTS_MAMBA).tokenizer
    text = "Paris is a city. Paris is in"
    starts = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    last, first = Prompt.of(tokenizer, text, "Paris"), Prompt.of(tokenizer, text, "Paris", 0)
    assert text[starts[last.first][0] :].strip() == "Paris is in"
    assert starts[first.first][0] == 0
    template = "{} is a city. Paris is in"
    filled = Prompt.filled(tokenizer, template, "Paris")
    assert (filled.ids, filled.first, filled.last) == (first.ids, first.first, first.last)
    with pytest.raises(InvalidRequest, match="The subject 'Paris' is not in the prompt"):
        Prompt.of(tokenizer, text, "Paris", 3)


def test_a_word_goes_on_a_text_with_its_space() -> None:
    tokenizer = facts(FACTS_MAMBA).tokenizer
    assert tokenizer.decode([first_token(tokenizer, "Paris")]) == " Paris"


def test_a_subject_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="The subject 'Rome' is not in the prompt"):
        Prompt.of(facts(FACTS_MAMBA).tokenizer, "The capital of France is", "Rome")


_LONG = "The capital of France is " * 80
_TWO = {"base": _LONG, "source": _LONG, "answer": "Paris", "source_answer": "Rome"}
_FACT = {"prompt": _LONG + "The capital of {} is", "subject": "Italy", "target_new": "Paris"}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("mediate", {"pairs": [_TWO, _TWO]}),
        ("edit.rome", {"requests": [_FACT], "layer": 1, "key": "raw", "sampled": []}),
        (
            "steer",
            {
                "layer": 1,
                "positive": ["The city"],
                "negative": ["two plus"],
                "prompts": [{"prompt": "The", "wanted": "a", "other": "b"}],
                "neutral": [_LONG],
            },
        ),
    ],
)
def test_a_text_that_is_too_long_for_the_model_is_refused_in_words(
    method: str, params: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=r"has \d+ tokens; this model reads 128 at most"):
        run(find(method), of_family("gpt2"), params, Notebook(tmp_path, bar=False))


def test_texts_are_cut_to_what_the_model_was_made_for(tmp_path: Path) -> None:
    model = of_family("gpt2")
    corpus = Corpus.of(Notebook(tmp_path, bar=False), model, [_LONG, "The city"], 4096)
    assert [len(row) for row in corpus.sequences] == [128, len(model.tokenizer("The city")["input_ids"])]
