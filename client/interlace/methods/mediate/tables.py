"""What is said of effects: metrics with their intervals, and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from interlace.methods.base import Metric, Table
from interlace.methods.mediate.basis import Unit
from interlace.methods.mediate.pair_spec import Pair
from interlace.methods.shared import intervals

MOST_TOLD = 20_000  # rows of a table


def share(name: str, hits: int, n: int, split: str) -> Metric:
    value, interval = intervals.share(hits, n)
    return Metric(name=name, value=value, unit="fraction", n=n, ci95=interval, split=split)


def mean(name: str, values: Tensor, split: str = "", unit: str = "logits") -> Metric:
    value, interval = intervals.mean(values.tolist())
    return Metric(name=name, value=value, unit=unit, n=len(values), ci95=interval, split=split)


def effects(units: Sequence[Unit], found: Tensor, exact: Mapping[int, float]) -> Table:
    """Of effects [units, n], the largest mean first."""
    rows: list[tuple[Any, ...]] = []
    for number, (unit, row) in enumerate(zip(units, found.tolist(), strict=True)):
        rows.append((*unit[:4], *middle(row), exact.get(number), len(row)))
    rows.sort(key=lambda row: -abs(row[4]))
    columns = ("site", "layer", "position", "unit", "estimate", "low", "high", "exact", "n")
    return Table(name="effects", columns=columns, rows=tuple(rows[:MOST_TOLD]))


def middle(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean, and its interval where there is one."""
    value, interval = intervals.mean(values)
    return (value, *(interval or (None, None)))


def pairs(asked: Sequence[Pair], base: Tensor, source: Tensor) -> Table:
    rows = [
        (pair.base, pair.source, *margins)
        for pair, margins in zip(asked, zip(base.tolist(), source.tolist(), strict=True), strict=True)
    ]
    return Table(name="pairs", columns=("base", "source", "m_base", "m_source"), rows=tuple(rows))
