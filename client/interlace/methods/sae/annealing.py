"""p-annealing (2408.00113, section 4): when p changes, and by what lambda changes with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interlace.methods.sae.spec import PAnneal


def schedule(params: PAnneal, steps: int, variant: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """At which steps p changes, and to what. A change is made after the step's own loss.

    The library's (`p_anneal.py` of dictionary_learning 0.1.0): as many changes as values, evenly from `anneal_start` to
    `steps` itself, which never comes: p stays at its last value but one. The paper's: p has each value for equally many
    steps, `p_end` for the last of them. With `anneal_end` the last change is there, in both.
    """
    n = params.updates
    values = tuple(params.p_start + (params.p_end - params.p_start) * i / (n - 1) for i in range(n))
    if params.anneal_end is not None or variant == "library":
        end, parts = (steps if params.anneal_end is None else params.anneal_end), n - 1
    else:
        end, parts = steps, n
    return tuple(int(params.anneal_start + (end - params.anneal_start) * i / parts) for i in range(n)), values


@dataclass
class Annealing:
    """Where p and lambda stand."""

    at: tuple[int, ...]
    values: tuple[float, ...]
    queue_length: int
    p: float
    weight: float
    #: How many changes were made.
    made: int = 0
    #: The penalties of the last batches: under p, and under the p that comes next.
    queue: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def begin(cls, params: PAnneal, steps: int, variant: str) -> "Annealing":
        at, values = schedule(params, steps, variant)
        return cls(at, values, params.queue, params.p_start, params.weight)

    @property
    def next_p(self) -> float | None:
        """What p will be; None before `anneal_start`, when nothing is to be kept, and after the last change."""
        return self.values[self.made] if 0 < self.made < len(self.values) else None

    def after(self, step: int, penalty: float, next_penalty: float | None) -> None:
        """A step was done, with these penalties on its batch under p and under the next p."""
        if next_penalty is not None:
            self.queue = [*self.queue, (penalty, next_penalty)][-self.queue_length :]
        if self.made == len(self.at) or step != self.at[self.made]:
            return
        if self.queue and (below := sum(after for _, after in self.queue)) > 0:
            self.weight *= sum(before for before, _ in self.queue) / below
        self.p = self.values[self.made]
        self.made += 1
        self.queue = []

    def state(self) -> dict[str, Any]:
        """All that changes, as JSON has it."""
        return {"p": self.p, "weight": self.weight, "made": self.made, "queue": [list(pair) for pair in self.queue]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """What `state` gave."""
        self.p, self.weight, self.made = float(state["p"]), float(state["weight"]), int(state["made"])
        self.queue = [(float(before), float(after)) for before, after in state["queue"]]
