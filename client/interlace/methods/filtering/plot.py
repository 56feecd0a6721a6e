"""What was removed, and by which reason."""

from typing import Any

from matplotlib.figure import Figure

from interlace.methods.base import Result

_MOST = 20


def plot(result: Result) -> Figure:
    """Images that each reason meets; dark: those that no other reason meets."""
    rows: list[tuple[Any, ...]] = list(result.table("reasons").rows)[:_MOST][::-1]
    figure = Figure(figsize=(6, 1 + 0.25 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    names = [f"{row[1]} ({row[0]})" for row in rows]
    axes.barh(names, [row[2] for row in rows], color="0.8", label="images")
    axes.barh(names, [row[3] for row in rows], color="C0", label="by this reason alone")
    axes.set_xlabel("images removed")
    if rows:
        axes.legend(fontsize=7)
    return figure
