"""Pictures of probes and of a text as a model divides it."""

from typing import Any

from matplotlib.figure import Figure

from interlace.methods.base import Result

_LINE = 88  # characters


def accuracy(result: Result) -> Figure:
    """Held-out accuracy by layer, a curve for each target."""
    figure = Figure(figsize=(4.5, 3), layout="constrained")
    axes = figure.subplots()
    rows: list[tuple[Any, ...]] = list(result.table("accuracy").rows)
    for number, target in enumerate(sorted({row[1] for row in rows}, key=str)):
        own = [row for row in rows if row[1] == target]
        layers = [row[0] for row in own]
        name = f"token at t{target:+d}" if isinstance(target, int) and target else "token at t"
        name = name if isinstance(target, int) else str(target)
        axes.plot(layers, [row[2] for row in own], marker=".", color=f"C{number}", label=name)
        axes.fill_between(
            layers, [row[3] for row in own], [row[4] for row in own], color=f"C{number}", alpha=0.15, linewidth=0
        )
        if own[0][6] is not None:
            axes.plot(layers, [row[6] for row in own], color="0.5", linestyle="--", label="shuffled labels")
        axes.plot(layers, [row[5] for row in own], color=f"C{number}", linestyle=":", linewidth=0.8)
    axes.set_xlabel("layer")
    axes.set_ylabel("held-out accuracy (dotted: the commonest)")
    axes.set_ylim(-0.03, 1.03)
    axes.legend(fontsize=8)
    return figure


def segments(result: Result, most: int = 30) -> Figure:
    """On the left what the probes tell, by token class, early and late; on the right the best spans."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows: list[tuple[Any, ...]] = list(result.table("accuracy").rows)
    layers = sorted({row[0] for row in rows})
    classes = sorted({row[2] for row in rows})
    offsets = sorted({row[1] for row in rows})
    for number, name in enumerate(classes):
        for layer, style in zip(layers, ("--", "-"), strict=True):
            values = [next(row[3] for row in rows if row[:3] == (layer, offset, name)) for offset in offsets]
            left.plot(offsets, values, style, color=f"C{number}", marker=".", label=f"{name}, layer {layer}")
    left.set_xticks(offsets)
    left.set_xlabel("offset of the token that is read")
    left.set_ylabel("accuracy")
    left.set_ylim(-0.03, 1.03)
    left.legend(fontsize=7)
    best: list[tuple[Any, ...]] = list(result.table("vocabulary").rows[:most])
    right.barh(range(len(best)), [row[1] for row in best])
    right.set_yticks(range(len(best)), [str(row[0])[:_LINE] for row in best], fontsize=6)
    right.invert_yaxis()
    right.set_xlabel("psi")
    return figure
