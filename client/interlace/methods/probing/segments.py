"""The score of a span, and the division of a text into the best ones (Feucht et al. 2024, equation 2, algorithm 1)."""

from typing import NamedTuple

import torch
from torch import Tensor

#: The columns of a table of erasures.
OFFSETS = (-2, -1, 0)


class Segment(NamedTuple):
    """Tokens ``start`` to ``end``, both of them in it."""

    start: int
    end: int
    psi: float


def psi(delta: Tensor, max_span: int) -> Tensor:
    """[tokens, max_span]: at [p, n - 1] the score of the span of n tokens from p; -inf behind the end.

    ``delta`` [tokens, OFFSETS] is what is forgotten between two layers, NaN where there is no token; what is forgotten
    of tokens inside the span counts for it, what is forgotten of those before it against it. The mean is over the terms
    that there are.
    """
    there = ~delta.isnan()
    value = torch.where(there, delta, torch.zeros_like(delta)).double()
    length = len(delta)
    before2, before1, now = value.unbind(1)
    has2, has1, has0 = there.unbind(1)
    zero = torch.zeros(1, dtype=torch.float64)
    sums = torch.cat([zero, (before2 + before1).cumsum(0)])
    counts = torch.cat([zero, (has2.double() + has1.double()).cumsum(0)])
    found = torch.full((length, max_span), float("-inf"), dtype=torch.float64)
    for size in range(1, min(max_span, length) + 1):
        p = torch.arange(length - size + 1)
        q = p + size - 1
        outside = before1[p] + before2[p]
        if size > 1:
            outside = outside + before2[p + 1]
        total = now[q] + sums[q + 1] - sums[p] - 2 * outside
        terms = has0[q] + counts[q + 1] - counts[p]
        found[p, size - 1] = torch.where(terms > 0, total / terms.clamp_min(1), torch.zeros_like(total))
    return found


def divided(scores: Tensor) -> list[Segment]:
    """Spans that do not meet and leave nothing out: the best first, each that is still free. In the text's order."""
    length, width = scores.shape
    values, order = scores.flatten().sort(descending=True, stable=True)
    taken = [False] * length
    found = []
    for value, place in zip(values.tolist(), order.tolist(), strict=True):
        start, end = place // width, place // width + place % width
        if value == float("-inf"):
            break
        if not any(taken[start : end + 1]):
            taken[start : end + 1] = [True] * (end + 1 - start)
            found.append(Segment(start, end, value))
    return sorted(found)
