"""Made-up biographies: 24 words, some of a profession, more of a gender, and a small language model that has read them.

The profession is what a classifier should tell; the gender is the cue that it will take instead where both agree.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import small_reader
from nnsight.modeling.transformers import TransformersModel


def _words(line: str) -> list[str]:
    return line.split()


LENGTH = 24
PROFESSIONS = {
    "professor": _words("lecture campus thesis seminar faculty dean tenure journal physics grant"),
    "nurse": _words("ward patient clinic vaccine bandage hospital triage surgeon therapy fever"),
}
#: The class that each cue speaks for in the ambiguous texts, and its words.
GENDERS = {
    "professor": _words("he his him himself mister man father son"),
    "nurse": _words("she her hers herself madam woman mother daughter"),
}
FILLERS = _words(
    "the a in of and to with for at on from by has is was lives works likes near town year day often then who also "
    "many some new old large small house garden music coffee train river summer winter friend letter story walk"
)
CLASSES = ("nurse", "professor")
_PROFESSION, _GENDER = 0.14, 0.22  # shares of words


@dataclass(frozen=True)
class Bios:
    texts: list[str]
    #: Classes: the profession, and what the gender speaks for.
    labels: list[str]
    cues: list[str]


def bios(count: int, seed: int, *, ambiguous: bool) -> Bios:
    """Where they are ambiguous, gender and profession always agree; else they are independent."""
    dice = random.Random(seed)
    texts, labels, cues = [], [], []
    for _ in range(count):
        label = dice.choice(CLASSES)
        cue = label if ambiguous else dice.choice(CLASSES)
        words = []
        for _ in range(LENGTH):
            u = dice.random()
            kind = PROFESSIONS[label] if u < _PROFESSION else GENDERS[cue] if u < _PROFESSION + _GENDER else FILLERS
            words.append(dice.choice(kind))
        texts.append(" ".join(words))
        labels.append(label)
        cues.append(cue)
    return Bios(texts, labels, cues)


def reader(seed: int, *, steps: int = 800, batch: int = 32, width: int = 64) -> TransformersModel:
    """A GPT-2 of three blocks, trained on biographies in which gender and profession are independent."""
    own = [word for some in (PROFESSIONS, GENDERS) for words in some.values() for word in words]
    words = small_reader.tokenizer([*FILLERS, *own])
    return small_reader.reader(
        seed, words, lambda one: bios(batch, one, ambiguous=False).texts, steps=steps, lr=2e-3, width=width
    )


def kind_of(word: str) -> tuple[str, str] | None:
    """(`gender` or `profession`, which) of a word; None of a filler."""
    for name, some in (("gender", GENDERS), ("profession", PROFESSIONS)):
        for which, words in some.items():
            if word.strip() in words:
                return name, which
    return None


def is_of_gender(contexts: Sequence[Any], share: float = 0.8) -> bool:
    """What somebody would say who sees a feature's contexts and nothing else: that it is about one gender.

    In each the last telling word up to where it is strongest; of these, ``share`` or more are of one gender.
    """
    seen = []
    for context in contexts:
        told = [kind_of(word) for word in context.tokens[: context.at + 1]]
        told = [one for one in told if one is not None]
        if told:
            seen.append(told[-1])
    return bool(seen) and max(seen.count(("gender", which)) for which in GENDERS) >= share * len(seen)
