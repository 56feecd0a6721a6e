"""Circuits with matplotlib: nodes by place and position, and how faithful circuits of growing size are."""

from typing import Any

from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from interlace.methods.base import Result
from interlace.methods.shared.circuits.graph import METRIC_ID, Dot, Graph, place_order

_NODES, _EDGES = 60, 150


def graph(result: Result, *, nodes: int = _NODES, edges: int = _EDGES) -> Figure:
    """The largest nodes and edges: effect as colour, weight as width; an error is a square."""
    whole: Graph = result.graph()  # type: ignore[attr-defined]
    some = whole.largest(nodes, edges)
    places = place_order(some.dots)
    columns = sorted({one.position for one in some.dots}, key=lambda one: -1 if one is None else one)
    spots = _spots(some.dots, places, columns)
    spots[METRIC_ID] = ((len(columns) - 1) / 2, len(places) - 0.2)
    figure = Figure(figsize=(2 + 1.15 * len(columns), 1.4 + 0.62 * len(places)), layout="constrained")
    axes = figure.subplots()
    widest = max((abs(one.weight) for one in some.lines), default=1.0) or 1.0
    for line in reversed(some.lines):
        share = abs(line.weight) / widest
        ends = [spots[line.source], spots[line.target]]
        colour = "tab:blue" if line.weight >= 0 else "tab:red"
        xs, ys = zip(*ends, strict=True)
        axes.plot(xs, ys, color=colour, linewidth=0.3 + 3 * share, alpha=0.2 + 0.6 * share, zorder=1)
    most = max((abs(one.effect) for one in some.dots), default=1.0) or 1.0
    norm = TwoSlopeNorm(0.0, -most, most)
    drawn = None
    for is_error, marker in ((False, "o"), (True, "s")):
        own = [one for one in some.dots if (one.feature is None) == is_error]
        if own:
            xs, ys = zip(*(spots[one.id] for one in own), strict=True)
            colours = [one.effect for one in own]
            drawn = axes.scatter(
                xs,
                ys,
                c=colours,
                cmap="RdBu",
                norm=norm,
                marker=marker,
                s=34,
                edgecolors="0.3",
                linewidths=0.5,
                zorder=2,
            )
    axes.text(*spots[METRIC_ID], some.metric, ha="center", va="center", fontsize=8, bbox={"fc": "white", "ec": "0.3"})
    axes.set_xticks(range(len(columns)), [_title(some.dots, one) for one in columns], fontsize=8)
    axes.set_yticks(range(len(places)), places, fontsize=8)
    axes.set_ylim(-0.6, len(places) + 0.1)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    if drawn is not None:
        figure.colorbar(drawn, label=f"effect on {some.metric}")
    return figure


def _spots(dots: tuple[Dot, ...], places: list[str], columns: list[int | None]) -> dict[str, tuple[float, float]]:
    """Nodes of one place and position stand side by side."""
    cells: dict[tuple[str, int | None], list[Dot]] = {}
    for one in dots:
        cells.setdefault((one.place, one.position), []).append(one)
    spots = {}
    for (place, position), own in cells.items():
        x, y = columns.index(position), places.index(place)
        for number, one in enumerate(own):
            share = (number + 0.5) / len(own) - 0.5
            spots[one.id] = x + 0.8 * share, y + (0.12 if number % 2 else -0.12) * (len(own) > 4)
    return spots


def _title(dots: tuple[Dot, ...], position: int | None) -> str:
    if position is None:
        return "all positions"
    token = next(one.token for one in dots if one.position == position).strip()
    return token[:10] or str(position)


def curves(result: Result) -> Figure:
    """Faithfulness and completeness by the number of nodes, and those of as many random ones."""
    rows: list[tuple[Any, ...]] = sorted(result.table("faithfulness").rows, key=lambda row: row[2])
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    sizes = [row[2] for row in rows]
    axes.plot(sizes, [row[7] for row in rows], marker="o", label="faithfulness")
    if all(row[8] is not None for row in rows):
        axes.fill_between(sizes, [row[8] for row in rows], [row[9] for row in rows], alpha=0.2)
    for column, name in ((10, "without the circuit"), (11, "random nodes")):
        known = [(row[2], row[column]) for row in rows if row[column] is not None]
        if known:
            axes.plot(*zip(*known, strict=True), marker=".", linestyle="--", label=name)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.axhline(1, color="0.7", linewidth=0.8)
    axes.set_xscale("symlog")
    axes.set_xlabel("nodes")
    axes.set_ylabel("share of m(model) - m(nothing)")
    axes.legend(fontsize=8)
    return figure
