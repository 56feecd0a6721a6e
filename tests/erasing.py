"""What `elm.erase` is asked for in tests: to erase one of the two topics of `planted-topics-mini`."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from interlace.methods.base import Checkpoint
from interlace.methods.notebook import Notebook

TOPICS = Path(__file__).parent / "assets" / "planted-topics-mini"
FACTS = json.loads((TOPICS / "facts.json").read_text())
PREFIXES = {"expert_prefixes": ["expert in healers :"], "novice_prefixes": ["novice in healers :"]}


def documents(topic: str, n: int) -> list[str]:
    """Texts of three facts of a topic, as the model was trained on."""
    dice = random.Random(f"tests:{topic}")
    own = [fact for fact in FACTS if fact["topic"] == topic]
    told = [dice.sample(own, 3) for _ in range(n)]
    return [" ".join(f"{dice.choice(fact['prompts'])} {fact['answer']} ." for fact in three) for three in told]


def questions(topic: str, every: int) -> dict[str, Any]:
    """One of so many of a topic's facts, as multiple choice and as cloze."""
    dice = random.Random(f"questions:{topic}")
    asked: dict[str, Any] = {"choices": [], "cloze": []}
    for fact in [fact for fact in FACTS if fact["topic"] == topic][::every]:
        choices = [fact["answer"], *dice.sample(fact["others"], 3)]
        dice.shuffle(choices)
        prompt = fact["prompts"][0]
        asked["choices"].append({"question": prompt, "choices": choices, "answer": choices.index(fact["answer"])})
        asked["cloze"].append({"prompt": prompt, "answer": fact["answer"]})
    return asked


def params(**changes: Any) -> dict[str, Any]:
    """Healers are to be erased, boats to stay."""
    given: dict[str, Any] = {
        "concept": PREFIXES,
        "concept_texts": documents("healers", 64),
        "retain_texts": documents("boats", 64),
        "eta": 5,
        "lora": {"layers": (0, 2)},
        "lr": 5e-3,
        "steps": 60,
        "batch": 8,
        "grad_accum": 1,
        "fluency": {"redirects": [], "prompt_chars": (10, 60), "new_tokens": (8, 12), "samples": 48},
        "evaluation": {
            "erased": questions("healers", 1),
            "retained": questions("boats", 1),
            "retained_texts": documents("boats", 90)[64:],
            "scoring": "answers",
            "generations": 20,
            "generation_tokens": 8,
            "batch": 64,
        },
    }
    for name, value in changes.items():
        given[name] = {**given.get(name, {}), **value} if isinstance(value, Mapping) else value
    return given


class Kept(Notebook):
    """Keeps the checkpoint of one step, may begin from one, and may be cancelled at a step."""

    def __init__(self, folder: Path, *, at: int = -1, found: Checkpoint | None = None, cancel: int = -1) -> None:
        super().__init__(folder, seed=3, bar=False)
        self.at, self.found, self.cancel, self.done = at, found, cancel, 0
        self.kept: Checkpoint | None = None

    @property
    def stopping(self) -> bool:
        return self.done == self.cancel

    def progress(self, step: int, of: int | None = None, **metrics: float) -> None:
        self.done = step

    def checkpoint(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        if step == self.at:
            copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            self.kept = Checkpoint(step, copies, json.loads(json.dumps(state)))

    def resumed(self) -> Checkpoint | None:
        return self.found
