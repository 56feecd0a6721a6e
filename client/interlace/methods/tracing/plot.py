"""Causal tracing as heat maps: classes of tokens from above, layers from the left."""

from typing import Any

from matplotlib.figure import Figure

from interlace.methods.base import Result
from interlace.methods.shared.prompts import CLASSES


def plot(result: Result) -> Figure:
    """A heat map for each restored state, and a chart of the severed paths beside the whole one, if there are any."""
    rows: list[tuple[Any, ...]] = list(result.table("aie").rows)
    states = list(dict.fromkeys(row[0] for row in rows if not row[1]))
    cuts = list(dict.fromkeys(row[1] for row in rows if row[1]))
    layers = 1 + max(row[3] for row in rows)
    width = 0.9 + min(4.0, 0.9 + 0.22 * layers)
    panels = len(states) + bool(cuts)
    figure = Figure(figsize=(width * panels + 1.2, 2.6), layout="constrained")
    axes: list[Any] = list(figure.subplots(1, panels, squeeze=False)[0])
    top = max((row[4] for row in rows if row[4] == row[4]), default=1.0)
    for axis, state in zip(axes, states, strict=False):
        mine = {(row[2], row[3]): row[4] for row in rows if (row[0], row[1]) == (state, "")}
        names = [name for name in CLASSES if (name, 0) in mine]
        grid = [[mine[name, layer] for layer in range(layers)] for name in names]
        image = axis.imshow(grid, aspect="auto", cmap="Purples", vmin=0, vmax=top)
        axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=7)
        axis.set_xlabel("layer", fontsize=8)
        axis.set_title(state, fontsize=9)
    figure.colorbar(image, ax=axes[: len(states)], label="effect", shrink=0.8)
    if cuts:
        axis = axes[-1]
        for cut in ["", *cuts]:
            mine = {row[3]: row[4] for row in rows if (row[0], row[1], row[2]) == ("resid_post", cut, "subject_last")}
            axis.plot(sorted(mine), [mine[one] for one in sorted(mine)], label=f"{cut} severed" if cut else "whole")
        axis.set_title("subject last", fontsize=9)
        axis.set_xlabel("layer", fontsize=8)
        axis.legend(fontsize=7)
    return figure
