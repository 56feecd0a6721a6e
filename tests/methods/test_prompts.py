"""Where a prompt's subject is, in tokens."""

import pytest
from small_models import FACTS_MAMBA, facts

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


def test_a_word_goes_on_a_text_with_its_space() -> None:
    tokenizer = facts(FACTS_MAMBA).tokenizer
    assert tokenizer.decode([first_token(tokenizer, "Paris")]) == " Paris"


def test_a_subject_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="The subject 'Rome' is not in the prompt"):
        Prompt.of(facts(FACTS_MAMBA).tokenizer, "The capital of France is", "Rome")
