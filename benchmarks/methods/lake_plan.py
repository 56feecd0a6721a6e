"""A lake that jobs are to make: which adapter or edit is trained on top of which, and what else comes of them."""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import facts_of

MODEL = "lab/facts-gpt-mini"
SOURCE = Path(__file__).parents[2] / "tests" / "assets" / "facts-gpt-mini"
_DEEPEST = 4
_LAYERS = 6


@dataclass
class Node:
    """One model of the tree: the hosted one with all that is on the way to it, and with its own."""

    number: int
    #: None: the hosted model.
    parent: int | None
    #: `elm` or `rome`.
    kind: str
    params: dict[str, Any]
    #: Words that somebody would look for it with.
    words: str


@dataclass
class Plan:
    nodes: list[Node] = field(default_factory=list)
    #: Numbers of pairs of siblings whose mean is made.
    means: list[tuple[int, int]] = field(default_factory=list)
    #: Parameters of runs that differ by steps and learning rate alone, on the hosted model.
    sweep: list[dict[str, Any]] = field(default_factory=list)

    def chain(self, number: int) -> list[int]:
        """From the hosted model's child down to the node."""
        parent = self.nodes[number].parent
        return [*([] if parent is None else self.chain(parent)), number]


def plan(seed: int, size: int) -> Plan:
    """Two parts in three erase a city's name by a LoRA of rank 2 to 8 on all blocks, one changes a fact by ROME."""
    dice = random.Random(f"lake:{seed}")
    made = Plan()
    born = [one for one in facts_of.every() if one["relation"] == "born_in"]
    cities = sorted({one["object"] for one in born})
    dice.shuffle(cities)
    people = dice.sample(range(len(born)), size)
    for number in range(size):
        open_to = [one.number for one in made.nodes if len(made.chain(one.number)) < _DEEPEST]
        parent = None if number < 3 else dice.choice([None, *open_to, *open_to])
        if number % 3 == 2:
            made.nodes.append(Node(number, parent, "rome", *_fact(people[number], dice)))
        else:
            city = cities[number % len(cities)]
            made.nodes.append(Node(number, parent, "elm", *_erasing(city, dice)))
    siblings = [
        (one.number, other.number)
        for one in made.nodes
        for other in made.nodes
        if one.number < other.number and one.parent == other.parent
    ]
    made.means = dice.sample(siblings, min(2, len(siblings)))
    params, _ = _erasing(cities[-1], dice)
    made.sweep = [params | {"steps": steps, "lr": lr} for steps, lr in ((6, 2e-3), (12, 2e-3), (12, 4e-3))]
    return made


def _fact(number: int, dice: random.Random) -> tuple[dict[str, Any], str]:
    (request,) = facts_of.requests("born_in", 1, number)
    layer = dice.randrange(1, _LAYERS - 2)
    params = {"requests": [request], "layer": layer, "steps": 8, "sampled": [], "filter_known": False}
    params["texts"] = dice.sample(facts_of.corpus(), 300)
    return params, f"{request['subject']} {request['target_new']}"


def _erasing(city: str, dice: random.Random) -> tuple[dict[str, Any], str]:
    sentences = facts_of.corpus()
    own = [one for one in sentences if city in one]
    params = {
        "concept": {"expert_prefixes": [f"One who knows {city}: "], "novice_prefixes": ["One who knows nothing: "]},
        "concept_texts": own[:24],
        "retain_texts": dice.sample([one for one in sentences if city not in one], 24),
        "eta": 5,
        "lora": {"layers": [0, _LAYERS - 1], "rank": dice.choice([2, 4, 8])},
        "lr": 3e-3,
        "steps": dice.choice([8, 12, 16]),
        "batch": 4,
        "grad_accum": 1,
        "fluency": {"redirects": [], "prompt_chars": [10, 30], "new_tokens": [4, 6], "samples": 4},
        "evaluation": {"generations": 0, "generation_tokens": 8, "probes": False},
    }
    return params, f"erasing {city}"


def descendants(plan: Plan, number: int) -> Sequence[int]:
    """Numbers of those that have come of a node."""
    return [one.number for one in plan.nodes if number in plan.chain(one.number)[:-1]]
