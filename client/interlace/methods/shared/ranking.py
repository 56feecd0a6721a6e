"""How two rows of numbers go together."""

from torch import Tensor


def pearson(first: Tensor, second: Tensor) -> float:
    """Of two rows; NaN where one is constant."""
    a, b = first.double() - first.double().mean(), second.double() - second.double().mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else float("nan")


def spearman(first: Tensor, second: Tensor) -> float:
    """Of two rows, ties by their mean rank; NaN where one is constant."""
    return pearson(_ranks(first), _ranks(second))


def _ranks(values: Tensor) -> Tensor:
    below = (values[None, :] < values[:, None]).sum(1)
    same = (values[None, :] == values[:, None]).sum(1)
    return below.double() + (same.double() - 1) / 2
