"""Style guidance (Eq. 10 and 11): what a style adds is how it speaks otherwise than the base model does."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interlace.methods.shared.denoising.diffusion import Pipeline, Prompts
from interlace.methods.shared.denoising.lora import Layers


@dataclass(frozen=True)
class Term:
    """One style in a run: an adapter among the layers, what it is told, how much of it, and in which steps."""

    name: str
    prompts: Prompts
    strength: float
    #: First step, and the step behind the last.
    steps: tuple[int, int] = (0, 1 << 30)


@dataclass
class Guided:
    """A `Predict` with style guidance: e0(0) + guidance (e0(c) - e0(0)) + sum_i strength_i (e_i(c_i) - e0(c)).

    Call it once a step. A style of strength 0, or outside of its steps, is not computed, so that the rest is the base
    model's to the bit.
    """

    pipeline: Pipeline
    layers: Layers
    prompts: Prompts
    guidance: float
    terms: Sequence[Term]
    #: Of the first call.
    step: int = 0
    #: Rows that went through the denoiser.
    rows: int = 0
    #: (step, t, norm of the prompt's term, of each style's), means of the rows.
    norms: list[tuple[float, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._both = self.pipeline.encode_nothing(len(self.prompts)).beside(self.prompts)

    def __call__(self, noisy: Tensor, t: Tensor) -> Tensor:
        self.layers.use({})
        bare, told = self.pipeline.predict(torch.cat([noisy, noisy]), t, self._both).chunk(2)
        self.rows += 2 * len(noisy)
        change = self.guidance * (told - bare)
        said, norms = bare + change, [_norm(change)]
        for term in self.terms:
            if not term.strength or not term.steps[0] <= self.step < term.steps[1]:
                norms.append(0.0)
                continue
            self.layers.use({term.name: 1.0})
            change = term.strength * (self.pipeline.predict(noisy, t, term.prompts) - told)
            self.rows += len(noisy)
            said = said + change
            norms.append(_norm(change))
        self.layers.use({})
        self.norms.append((self.step, float(t), *norms))
        self.step += 1
        return said


@dataclass
class Scaled:
    """The usual way: adapters on at their weights in every row, while their steps last."""

    pipeline: Pipeline
    layers: Layers
    #: With every suffix; and as they are, for steps in which no adapter is on.
    styled: Prompts
    prompts: Prompts
    guidance: float
    terms: Sequence[Term]
    step: int = 0
    rows: int = 0
    norms: list[tuple[float, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._on = self.pipeline.guided(self.styled, self.guidance)
        self._off = self.pipeline.guided(self.prompts, self.guidance)

    def __call__(self, noisy: Tensor, t: Tensor) -> Tensor:
        on = {one.name: one.strength for one in self.terms if one.steps[0] <= self.step < one.steps[1]}
        self.layers.use(on)
        said = (self._on if on else self._off)(noisy, t)
        self.layers.use({})
        self.rows += (1 + (self.guidance > 1)) * len(noisy)
        self.step += 1
        return said


Guide = Guided | Scaled


def _norm(change: Tensor) -> float:
    return float(change.flatten(1).float().norm(dim=1).mean())
