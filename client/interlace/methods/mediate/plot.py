"""Effects of mediators: by layer and token where there are such, or the largest; of a subspace its accuracies."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from interlace.methods.base import Result

_MOST = 30
_FEWER = 14


def plot(result: Result) -> Figure:
    """A heat map for each site; bars for heads, neurons and features; the interchange accuracies of a subspace or of a
    mask, beside how the mask was found."""
    if any(table.name == "search" for table in result.tables):
        return _search(result)
    if not any(table.name == "effects" for table in result.tables):
        found = [one for one in result.metrics if one.name in ("iia", "chance")]
        return _bars([f"{one.name} {one.split}" for one in found], [one.value for one in found], "share of pairs")
    rows: list[tuple[Any, ...]] = list(result.table("effects").rows)
    if any(row[2] is None or row[3] is not None for row in rows):
        best = rows[:_MOST]
        names = [f"{row[0]} layer {row[1]}" + ("" if row[3] is None else f" #{row[3]}") for row in best]
        return _bars(names, [row[4] for row in best], "effect on m, logits")
    sites = sorted({row[0] for row in rows})
    figure = Figure(figsize=(3.6 * len(sites), 3), layout="constrained")
    most = max(abs(row[4]) for row in rows) or 1.0
    for axes, site in zip(figure.subplots(1, len(sites), squeeze=False)[0], sites, strict=True):
        own = [row for row in rows if row[0] == site]
        layers, positions = sorted({row[1] for row in own}), sorted({row[2] for row in own})
        grid = [[float("nan")] * len(positions) for _ in layers]
        for row in own:
            grid[layers.index(row[1])][positions.index(row[2])] = row[4]
        image = axes.imshow(grid, origin="lower", aspect="auto", cmap="RdBu", vmin=-most, vmax=most)
        axes.set_xticks(range(len(positions)), [str(one) for one in positions])
        axes.set_yticks(range(len(layers)), [str(one) for one in layers])
        axes.set_xlabel("token")
        axes.set_ylabel("layer")
        axes.set_title(site, fontsize=9)
        figure.colorbar(image, label="effect on m, logits")
    return figure


def paths(result: Result) -> Figure:
    """The largest paths, and the whole effect of each of their senders beside them."""
    senders: list[tuple[Any, ...]] = list(result.table("senders").rows)
    wholes = {row[:3]: row[3] for row in senders}
    rows: list[tuple[Any, ...]] = list(result.table("paths").rows)[:_FEWER]
    names = [f"{_place(row[:3])} to {_place(row[3:6])}" for row in rows]
    figure = _bars(names, [row[6] for row in rows], "effect on m, logits")
    axes = figure.axes[0]
    axes.plot([wholes[row[:3]] for row in rows], range(len(rows)), "k|", label="the whole sender")
    axes.legend(fontsize=7)
    return figure


def _place(unit: Sequence[Any]) -> str:
    layer = "" if unit[1] is None else f" {unit[1]}"
    return f"{unit[0]}{layer}" + ("" if unit[2] is None else f" at {unit[2]}")


def _search(result: Result) -> Figure:
    """The loss and how many mediators are on, by step; and the accuracies."""
    rows: list[tuple[Any, ...]] = list(result.table("search").rows)
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    steps, shares = figure.subplots(1, 2)
    steps.plot([row[0] for row in rows], [row[2] for row in rows])
    steps.set_yscale("symlog", linthresh=10)
    steps.set_xlabel("step")
    steps.set_ylabel("mediators on")
    found = [one for one in result.metrics if one.name in ("iia", "chance")]
    shares.barh(range(len(found)), [one.value for one in found])
    shares.set_yticks(range(len(found)), [f"{one.name} {one.split}" for one in found], fontsize=7)
    shares.invert_yaxis()
    shares.set_xlabel("share of pairs")
    return figure


def _bars(names: list[str], values: list[float], label: str) -> Figure:
    figure = Figure(figsize=(6, 0.8 + 0.22 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(names)), values)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return figure
