"""How good a ranking is, where it is known what taught a model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from interlace.methods.base import Metric
from interlace.methods.shared.intervals import mean


def top(scores: Tensor, k: int) -> list[int]:
    """The places of the k highest, the highest first; of equals, the first."""
    return [int(one) for one in scores.argsort(descending=True, stable=True)[:k]]


def average_precision(scores: Tensor, known: Sequence[int]) -> float:
    """The mean, over what is known, of the share of known ones down to it."""
    hits = torch.zeros(len(scores))
    hits[list(known)] = 1
    hits = hits[scores.argsort(descending=True, stable=True)]
    precision = hits.cumsum(0) / torch.arange(1, len(scores) + 1)
    return float((precision * hits).sum() / hits.sum())


def auc(scores: Tensor, known: Sequence[int], others: Sequence[int]) -> float:
    """How often a known one is over another; half where they are equal."""
    one, other = scores[list(known)][:, None], scores[list(others)][None, :]
    return float((one > other).float().mean() + 0.5 * (one == other).float().mean())


def overlap(tops: Sequence[Sequence[int]]) -> float | None:
    """The mean share that two tops have in common; None for fewer than two."""
    shares = [
        len(set(one) & set(other)) / len(one) for number, one in enumerate(tops) for other in tops[:number] if one
    ]
    return sum(shares) / len(shares) if shares else None


def averaged(name: str, values: Sequence[float], split: str = "", unit: str = "fraction") -> Metric:
    """A metric of one value for each query."""
    middle, interval = mean(values)
    return Metric(name=name, value=middle, unit=unit, n=len(values), ci95=interval, split=split)
