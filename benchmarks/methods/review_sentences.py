"""Real sentences for experiments on SmolLM2: reviews, from a folder that whoever runs them has.

The folder holds the Sentiment Labelled Sentences of Kotzias et al. (2015, UCI, CC BY 4.0), `imdb_labelled.txt`,
`yelp_labelled.txt` and `amazon_cells_labelled.txt` (a sentence, a tab, 0 or 1), and the sentence polarity set of Pang
and Lee (2005), `rt-polarity.pos` and `rt-polarity.neg` (a sentence a line). None of it is in this repository.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILM, FOOD = "imdb", "yelp"
_FILES = {FILM: "imdb_labelled.txt", FOOD: "yelp_labelled.txt", "goods": "amazon_cells_labelled.txt"}


@dataclass(frozen=True)
class Review:
    text: str
    #: What it is about: `imdb` (films), `yelp` (restaurants), `goods`.
    about: str
    is_good: bool


def reviews(folder: Path) -> list[Review]:
    """Those with a label, in the order of the files."""
    found = []
    for about, file in _FILES.items():
        for line in (folder / file).read_text().splitlines():
            text, _, label = line.rpartition("\t")
            if label in ("0", "1"):
                found.append(Review(text.strip(), about, label == "1"))
    return found


def unlabelled(folder: Path, seed: int) -> list[str]:
    """All sentences, shuffled: for dictionaries to learn from."""
    texts = [one.text for one in reviews(folder)]
    for end in ("pos", "neg"):
        lines = (folder / f"rt-polarity.{end}").read_text(encoding="latin-1").splitlines()
        texts += [line.strip() for line in lines if line.strip()]
    random.Random(seed).shuffle(texts)
    return texts


def confounded(every: Sequence[Review], seed: int, *, train: int) -> tuple[list[Review], list[Review]]:
    """Of films and restaurants: ``train`` sentences in which all films are good and all restaurants bad, and the others
    as four groups of one size."""
    own = [one for one in every if one.about in (FILM, FOOD)]
    random.Random(seed).shuffle(own)
    agreeing = [one for one in own if one.is_good == (one.about == FILM)]
    ambiguous, rest = agreeing[:train], agreeing[train:]
    rest += [one for one in own if one.is_good != (one.about == FILM)]
    groups = [
        [one for one in rest if (one.about, one.is_good) == (about, good)]
        for about in (FILM, FOOD)
        for good in (True, False)
    ]
    size = min(map(len, groups))
    return ambiguous, [one for some in groups for one in some[:size]]
