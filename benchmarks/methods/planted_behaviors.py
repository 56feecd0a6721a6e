"""Five made-up behaviours in a stream of chance words, and a small language model that has learned them.

A behaviour is ``CONTENT word QUERY ANSWER``: the answer follows from the content, by a map of the behaviour's own. All
other words are chance, so that no model foresees them. With templates a text is of one behaviour, and its chance words
are that behaviour's own.
"""

import random
from dataclasses import dataclass

import small_reader
from nnsight.modeling.transformers import TransformersModel

LENGTH = 24
BEHAVIORS = 5
_CONTENTS = 6  # of a behaviour
_FILLERS = [f"word{number}" for number in range(60)]
_OWN = len(_FILLERS) // BEHAVIORS  # words of a behaviour's template


@dataclass(frozen=True)
class Stream:
    texts: list[str]
    #: Of each text: the position of each answer, and its behaviour.
    answers: list[dict[int, int]]


def streams(count: int, seed: int, *, templates: bool = False) -> Stream:
    """Two or three behaviours in each, or one with ``templates``; a content without its query as often as with it."""
    dice = random.Random(seed)
    texts, answers = [], []
    for _ in range(count):
        words: list[str] = []
        here: dict[int, int] = {}
        behavior, chance = dice.randrange(BEHAVIORS), _FILLERS
        if templates:
            chance = _FILLERS[behavior * _OWN : (behavior + 1) * _OWN]
        while len(words) < LENGTH:
            words += dice.choices(chance, k=dice.randint(1, 4))
            behavior, content = behavior if templates else dice.randrange(BEHAVIORS), dice.randrange(_CONTENTS)
            words += [f"content{behavior}.{content}", dice.choice(chance)]
            if dice.random() < 0.5:
                here[len(words) + 1] = behavior
                words += [f"query{behavior}", f"answer{behavior}.{content}"]
        texts.append(" ".join(words[:LENGTH]))
        answers.append({at: one for at, one in here.items() if at < LENGTH})
    return Stream(texts, answers)


def reader(seed: int, *, templates: bool = False, steps: int = 700, batch: int = 32) -> TransformersModel:
    """A GPT-2 of three blocks, trained on streams."""
    every = list(_FILLERS)
    for behavior in range(BEHAVIORS):
        every.append(f"query{behavior}")
        for content in range(_CONTENTS):
            every += [f"content{behavior}.{content}", f"answer{behavior}.{content}"]
    words = small_reader.tokenizer(every)
    return small_reader.reader(
        seed, words, lambda one: streams(batch, one, templates=templates).texts, steps=steps, lr=3e-3
    )
