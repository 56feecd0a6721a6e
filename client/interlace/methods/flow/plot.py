"""What each cut costs, by layer."""

from typing import Any

from matplotlib.figure import Figure

from interlace.methods.base import Result


def plot(result: Result) -> Figure:
    """A line for each set of tokens with its 95 % band: the change of the answer's probability."""
    rows: list[tuple[Any, ...]] = list(result.table("flow").rows)
    figure = Figure(figsize=(4.6, 2.8), layout="constrained")
    axis: Any = figure.subplots()
    for block in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == block]
        layers = [row[1] for row in mine]
        (line,) = axis.plot(layers, [row[2] for row in mine], label=block.replace("_", " "))
        if all(row[3] is not None for row in mine):
            axis.fill_between(
                layers, [row[3] for row in mine], [row[4] for row in mine], color=line.get_color(), alpha=0.15, lw=0
            )
    axis.axhline(0, color="grey", lw=0.6)
    axis.set_xlabel("layer in the middle of the cut", fontsize=8)
    axis.set_ylabel("change of p(answer)", fontsize=8)
    axis.legend(fontsize=7)
    return figure
