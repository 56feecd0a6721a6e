"""A linear head on mean-pooled states: what it reads, how it is trained, how good it is by group."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from interlace.methods.base import Opened, Report
from interlace.methods.shared.capture import by_length, state_at
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.intervals import share
from interlace.methods.shared.sites import Place, Sites
from interlace.protocol.errors import InvalidArtifact

_DECAY = 0.01  # AdamW's own


@dataclass(frozen=True)
class Head:
    """[n, width] -> [n, classes]"""

    weight: Tensor
    bias: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        return functional.linear(states, self.weight.to(states), self.bias.to(states))

    @classmethod
    def of(cls, opened: Opened, layer: int, width: int, classes: Sequence[str]) -> "Head":
        """Raises InvalidArtifact for what is no head of these classes at this layer."""
        weight, bias = (opened.tensors.get(f"{layer}.label{end}") for end in ("", ".bias"))
        if weight is None or bias is None or opened.config.get("classes") != list(classes):
            raise InvalidArtifact(f"{opened.ref} holds no head at layer {layer} for the classes {', '.join(classes)}.")
        if weight.shape != (len(classes), width) or bias.shape != (len(classes),):
            raise InvalidArtifact(f"{opened.ref}: the head has the shape {list(weight.shape)}; the states are {width}.")
        return cls(weight.float(), bias.float())


@dataclass(frozen=True)
class Pooled:
    """The mean over a text's tokens of the state at a place; it is also where m of an attribution comes from."""

    sites: Sites
    place: Place
    skip_first: int
    report: Report

    def __call__(self, ids: Tensor) -> Tensor:
        """[rows, tokens] of equal length -> [rows, width], in float32; gradients where they are enabled. Blocks after
        the place do not run."""
        self.report.count(forwards=1, tokens=ids.numel())
        device = next(self.sites.module.parameters()).device
        state = state_at(self.sites.module, ids.to(device), self.place).float()
        return state[:, min(self.skip_first, state.shape[1] - 1) :].mean(1)

    def of(self, corpus: Corpus, size: int) -> Tensor:
        """[texts, width], on the CPU."""
        found: list[Tensor | None] = [None] * len(corpus)
        with torch.no_grad():
            for numbers, ids in by_length([row.tolist() for row in corpus.sequences], size):
                for number, row in zip(numbers, self(ids).cpu(), strict=True):
                    found[number] = row
        return torch.stack([row for row in found if row is not None])


@dataclass(frozen=True)
class HeadMeasure:
    """m of an attribution: minus log C(y|x) in nats, or the class's logit."""

    pooled: Pooled
    head: Head
    #: [texts], classes.
    labels: Tensor
    of_logit: bool
    report: Report

    def __call__(self, ids: Tensor, numbers: Sequence[int]) -> Tensor:
        said = self.head(self.pooled(ids))
        labels = self.labels[list(numbers)].to(said.device)[:, None]
        if self.of_logit:
            return said.gather(1, labels)[:, 0]
        return -said.log_softmax(-1).gather(1, labels)[:, 0]


def trained(states: Tensor, labels: Tensor, classes: int, *, lr: float, epochs: int, batch: int, seed: int) -> Head:
    """Cross-entropy by AdamW, from zeros, over shuffled texts."""
    weight = torch.zeros(classes, states.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=_DECAY)
    dice = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for some in _shuffled(len(states), batch, dice):
            optimizer.zero_grad()
            with torch.enable_grad():
                functional.cross_entropy(functional.linear(states[some], weight, bias), labels[some]).backward()
            optimizer.step()
    return Head(weight.detach(), bias.detach())


def _shuffled(count: int, size: int, dice: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=dice)
    yield from order.split(size)


@dataclass(frozen=True)
class Judged:
    """How often a head says the class that it should, and the one that the cue speaks for."""

    n: int
    intended: float
    intended_ci: tuple[float, float] | None
    spurious: float
    spurious_ci: tuple[float, float] | None
    #: The least accuracy in any group of one class and one cue.
    worst: float
    #: Its class and cue.
    group: tuple[int, int]

    @classmethod
    def of(cls, head: Head, states: Tensor, intended: Tensor, spurious: Tensor) -> "Judged":
        with torch.no_grad():
            said = head(states).argmax(-1)
        right, cued = said == intended, said == spurious
        groups = {
            (int(a), int(b)): float(right[(intended == a) & (spurious == b)].float().mean())
            for a, b in torch.stack([intended, spurious], 1).unique(dim=0)
        }
        group = min(groups, key=lambda one: (groups[one], one))
        n = len(said)
        (first, first_ci), (second, second_ci) = share(int(right.sum()), n), share(int(cued.sum()), n)
        return cls(n, first, first_ci, second, second_ci, groups[group], group)
