"""Pictures of a run: its losses, or how much each term of the guidance did."""

from typing import Any

from matplotlib.figure import Figure

from interlace.methods.base import Result, Table


def plot(result: Result) -> Figure:
    """Losses of content and style by update."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    table = result.table("losses")
    for number, colour in enumerate(("C0", "C1"), 1):
        points = [(row[0], row[number]) for row in table.rows if row[number] is not None]
        if points:
            axes.plot(*_columns(points), color=colour, linewidth=0.6, label=table.columns[number])
    axes.set_xlabel("update")
    axes.set_ylabel("loss")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return figure


def plot_terms(result: Result) -> Figure:
    """The norm of each term of the guidance by step."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    table: Table = result.table("terms")
    for number, name in enumerate(table.columns[2:], 2):
        axes.plot(*_columns([(row[0], row[number]) for row in table.rows]), marker=".", label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("norm of the term")
    axes.legend(fontsize=8)
    return figure


def _columns(points: list[tuple[Any, Any]]) -> tuple[list[float], list[float]]:
    return [float(x) for x, _ in points], [float(y) for _, y in points]
