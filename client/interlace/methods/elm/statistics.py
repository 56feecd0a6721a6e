"""Tests of no knowledge, in plain Python, exact where that is cheap."""

import math
import random
from collections.abc import Sequence


def chance_p(hits: int, chances: Sequence[float]) -> float:
    """Two-sided: how likely a guesser's count of right answers is at most as likely as this one. Exact.

    ``chances`` are each item's, so that items may have different numbers of choices (a Poisson binomial).
    """
    mass = [1.0]
    for chance in chances:
        mass = [
            (mass[k] * (1 - chance) if k < len(mass) else 0.0) + (mass[k - 1] * chance if k else 0.0)
            for k in range(len(mass) + 1)
        ]
    bound = mass[hits] * (1 + 1e-9)
    return min(1.0, math.fsum(one for one in mass if one <= bound))


def paired_p(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided, exact (McNemar): whether two answer the same items right equally often."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    return chance_p(only_first, [0.5] * (only_first + only_second))


def uniform_p(ranks: Sequence[int], of: Sequence[int], seed: int) -> float:
    """Kolmogorov-Smirnov: whether the right choices' ranks, 0 to ``of`` - 1, are as a guesser's, uniform.

    Each rank is put at a seeded random place in its share of [0, 1], without which discrete ranks would make the test
    conservative. The p is of the limiting distribution, with Stephens' correction for few items.
    """
    dice = random.Random(f"{seed}:ranks")
    n = len(ranks)
    places = sorted((rank + dice.random()) / k for rank, k in zip(ranks, of, strict=True))
    distance = max(max((i + 1) / n - place, place - i / n) for i, place in enumerate(places))
    scaled = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    if scaled < 0.2:  # the series does not converge there; the p is 1 to 12 digits
        return 1.0
    tail = 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, tail))
