"""A recovered tree, and how far apart two models are layer by layer."""

from typing import Any

from matplotlib.figure import Figure

from interlace.methods.base import Result

_LONGEST = 14  # characters of a name


def heritage(result: Result) -> Figure:
    """Each model a dot, in the column of its depth; an edge is as dark as its margin is wide."""
    edges: list[tuple[Any, ...]] = list(result.table("edges").rows)
    parent_of = {row[1]: row[0] for row in edges}
    names = list(dict.fromkeys(name for row in edges for name in row[:2]))
    depth = {name: _depth(name, parent_of) for name in names}
    rows: dict[int, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for name in sorted(names, key=lambda one: (depth[one], parent_of.get(one, ""), one)):
        rows[depth[name]] = rows.get(depth[name], 0) + 1
        places[name] = depth[name], -rows[depth[name]]
    figure = Figure(figsize=(5, 0.3 * max([*rows.values(), 3]) + 0.8), layout="constrained")
    axis: Any = figure.subplots()
    for row in edges:
        (x0, y0), (x1, y1) = places[row[0]], places[row[1]]
        axis.plot([x0, x1], [y0, y1], color="tab:blue", alpha=0.25 + 0.75 * row[4], lw=1)
    for name, (x, y) in places.items():
        axis.plot([x], [y], "o", color="black", ms=3)
        axis.annotate(_short(name), (x, y), xytext=(4, 2), textcoords="offset points", fontsize=6)
    axis.set_axis_off()
    axis.margins(x=0.25)
    return figure


def layers(result: Result) -> Figure:
    """A bar for each matrix: its relative distance."""
    rows: list[tuple[Any, ...]] = list(result.table("layers").rows)
    figure = Figure(figsize=(5, 0.16 * len(rows) + 1), layout="constrained")
    axis: Any = figure.subplots()
    axis.barh([row[0].removesuffix(".weight") for row in rows], [row[1] for row in rows])
    axis.invert_yaxis()
    axis.tick_params(labelsize=6)
    axis.set_xlabel("relative distance", fontsize=8)
    return figure


def _depth(name: str, parent_of: dict[str, str]) -> int:
    depth = 0
    while name in parent_of:
        name, depth = parent_of[name], depth + 1
    return depth


def _short(name: str) -> str:
    bare = name.removeprefix("artifact:").partition("@")[0].rpartition("/")[2]
    return bare if len(bare) <= _LONGEST else f"{bare[:_LONGEST]}..."
