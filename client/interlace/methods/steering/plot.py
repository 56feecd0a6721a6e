"""Effect and harm of a direction by its scale, beside random ones."""

from typing import Any

from matplotlib.figure import Figure

from interlace.methods.base import Result


def plot(result: Result) -> Figure:
    """On the left what it makes likelier, on the right what that costs; grey: random directions of the same norm."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    sides = figure.subplots(1, 2)
    rows: list[tuple[Any, ...]] = sorted(result.table("scales").rows, key=lambda row: float(row[0] or 0))
    for axes, (column, label) in zip(
        sides,
        ((2, "growth of log P(wanted) - log P(other), nats"), (6, "growth of neutral nats per token")),
        strict=True,
    ):
        for name in dict.fromkeys(row[1] for row in rows):
            own = [row for row in rows if row[1] == name]
            colour = "C0" if name == "direction" else "0.7"
            axes.plot(
                [row[0] for row in own], [row[column] for row in own], color=colour, marker=".", zorder=len(own[0])
            )
        axes.axhline(0, color="0.3", linewidth=0.5)
        axes.set_xlabel("scale")
        axes.set_ylabel(label, fontsize=8)
    return figure
