"""95 % intervals, without a library of statistics."""

import math
from collections.abc import Sequence

_Z = 1.959964
#: Student's t for 1 to 4 degrees of freedom; beyond, the series below is good to 0.2 %.
_T = (12.7062, 4.3027, 3.1824, 2.7764)


def mean(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """The mean and its interval by Student's t; none for fewer than two."""
    n = len(values)
    middle = math.fsum(values) / n if n else math.nan
    if n < 2:
        return middle, None
    spread = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (n - 1) / n)
    half = _t(n - 1) * spread
    return middle, (middle - half, middle + half)


def share(hits: int, n: int) -> tuple[float, tuple[float, float] | None]:
    """A proportion and its interval by Wilson's score."""
    if not n:
        return math.nan, None
    p, z = hits / n, _Z
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return p, (max(0.0, middle - half), min(1.0, middle + half))


def _t(freedom: int) -> float:
    if freedom <= len(_T):
        return _T[freedom - 1]
    z, v = _Z, float(freedom)
    first, second = (z**3 + z) / (4 * v), (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    return z + first + second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
