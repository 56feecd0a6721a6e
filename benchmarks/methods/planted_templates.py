"""Five made-up behaviours with a template each, and a small language model that has learned them.

A behaviour is ``CUE word QUERY ANSWER``, with one or two chance words between. The answer follows the query where the
behaviour's cue was before it; without the cue a chance word does, so that neither cue nor query says it alone. All else
is chance. There is one answer to a behaviour: what the model has to tell apart are five things, whichever words stand
between and before.
"""

import random

import small_reader
from nnsight.modeling.transformers import TransformersModel
from planted_behaviors import Stream

LENGTH = 24
BEHAVIORS = 5
_FILLERS = [f"word{number}" for number in range(60)]


def streams(count: int, seed: int) -> Stream:
    """Two or three behaviours in each; a query without its cue as often as with it."""
    dice = random.Random(seed)
    texts, answers = [], []
    for _ in range(count):
        words: list[str] = []
        here: dict[int, int] = {}
        while len(words) < LENGTH:
            words += dice.choices(_FILLERS, k=dice.randint(1, 3))
            behavior, is_whole = dice.randrange(BEHAVIORS), dice.random() < 0.5
            if is_whole:
                words.append(f"cue{behavior}")
            words += dice.choices(_FILLERS, k=dice.randint(1, 2))
            words.append(f"query{behavior}")
            if is_whole:
                here[len(words)] = behavior
                words.append(f"answer{behavior}")
        texts.append(" ".join(words[:LENGTH]))
        answers.append({at: one for at, one in here.items() if at < LENGTH})
    return Stream(texts, answers)


def reader(seed: int, *, steps: int = 600, batch: int = 32) -> TransformersModel:
    """A GPT-2 of three blocks, trained on streams."""
    own = [f"{kind}{number}" for number in range(BEHAVIORS) for kind in ("cue", "query", "answer")]
    words = small_reader.tokenizer([*_FILLERS, *own])
    return small_reader.reader(seed, words, lambda one: streams(batch, one).texts, steps=steps, lr=3e-3)
