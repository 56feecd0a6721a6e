"""A small run of each method: its parameters, and the artifacts that they name. A method that is added adds its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Artifact = tuple[str, Mapping[str, Tensor], Mapping[str, Any]]


@dataclass(frozen=True)
class Case:
    """One run; its model is gpt2-tiny."""

    params: dict[str, Any]
    #: Parameter -> the artifact that it names: kind, tensors, configuration.
    inputs: dict[str, Callable[[], Artifact]] = field(default_factory=dict)
    seed: int = 0


PROMPTS = ["The Eiffel Tower is located in the city of", "The Colosseum is in"]

CASES: dict[str, list[Case]] = {
    "lens.logit@1": [
        Case({"prompts": PROMPTS, "positions": [0, -1], "targets": [" Paris", " Rome"]}),
        Case({"layers": [-1, 1]}, {"prompts": lambda: ("texts", {}, {"texts": PROMPTS})}),
    ],
    "norm.lens@1": [Case({"prompts": PROMPTS, "order": 1.5})],
    "kit.steps@2": [Case({"steps": 4, "texts": ["a", "b"], "makes": ["data", "texts", "edit", "sae"]}, seed=7)],
    "trace.causal@1": [
        Case(
            {
                "prompts": [
                    {"text": "The Eiffel Tower is in the city of", "subject": "Eiffel Tower"},
                    {"text": "The Colosseum is in the city of", "subject": "Colosseum"},
                ],
                "samples": 2,
                "positions": ["subject_last", "last"],
                "least_effect": 0.0,
            }
        )
    ],
}
