"""Made-up behaviours that cue and query say together, and neither alone: `planted_templates`, mended.

A behaviour is ``CUE word QUERY ANSWER``, with one or two chance words between. There a cue made its own query foreseen,
so that the queries were behaviours, too, which the truth did not count. Here a cue is as often followed by another
query, after which comes a chance word, as by its own. With fewer answers than behaviours two of them share one, so that
what is foreseen does not say which it is.
"""

import random
from dataclasses import dataclass

import small_reader
from nnsight.modeling.transformers import TransformersModel
from planted_behaviors import Stream

LENGTH = 24
_FILLERS = [f"word{number}" for number in range(60)]


@dataclass(frozen=True)
class Toy:
    behaviors: int
    answers: int

    def streams(self, count: int, seed: int) -> Stream:
        """Two or three behaviours in each, half of them whole."""
        dice = random.Random(seed)
        texts, answers = [], []
        for _ in range(count):
            words: list[str] = []
            here: dict[int, int] = {}
            while len(words) < LENGTH:
                words += dice.choices(_FILLERS, k=dice.randint(1, 3))
                cue = asked = dice.randrange(self.behaviors)
                kind = dice.choice(("whole", "whole", "other query", "no cue"))
                if kind != "no cue":
                    words.append(f"cue{cue}")
                if kind == "other query":
                    asked = dice.choice([one for one in range(self.behaviors) if one != cue])
                words += dice.choices(_FILLERS, k=dice.randint(1, 2))
                words.append(f"query{asked}")
                if kind == "whole":
                    here[len(words)] = cue
                    words.append(f"answer{cue % self.answers}")
            texts.append(" ".join(words[:LENGTH]))
            answers.append({at: one for at, one in here.items() if at < LENGTH})
        return Stream(texts, answers)

    def reader(self, seed: int, *, steps: int = 700, batch: int = 32) -> TransformersModel:
        """A GPT-2 of three blocks, trained on streams."""
        own = [f"{kind}{number}" for number in range(self.behaviors) for kind in ("cue", "query")]
        words = small_reader.tokenizer([*_FILLERS, *own, *(f"answer{number}" for number in range(self.answers))])
        return small_reader.reader(seed, words, lambda one: self.streams(batch, one).texts, steps=steps, lr=3e-3)
