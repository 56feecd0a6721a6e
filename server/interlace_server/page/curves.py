"""Which tables of a result are curves, for people to look at before they read them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from interlace.methods.base import Table

#: What curves go over: a table whose first column is one of these, and grows from row to row.
_OVER = frozenset({"step", "epoch", "layer", "size", "sparsity", "share", "strength", "scale", "rank", "tokens"})
_LEAST, _MOST = 3, 8  # rows; curves


def curves(table: Table) -> list[int]:
    """The columns to draw over the first; none where it is no such table."""
    if not table.columns or table.columns[0] not in _OVER or len(table.rows) < _LEAST:
        return []
    over: list[Any] = [row[0] for row in table.rows]
    if not _numbers(over) or any(one >= other for one, other in pairwise(over)):
        return []
    return [at for at in range(1, len(table.columns)) if _numbers([row[at] for row in table.rows])][:_MOST]


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
