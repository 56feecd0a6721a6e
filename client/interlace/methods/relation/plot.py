"""Faithfulness and causality of a relation by layer, each beside its baselines."""

from matplotlib.figure import Figure

from interlace.methods.base import Result, Table


def plot(result: Result) -> Figure:
    """On the left the best beta of each layer, on the right the best rank."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    pictures = (
        (left, result.table("faithfulness"), {"faithfulness": "C0", "bias_only": "0.5", "identity": "C1"}),
        (right, result.table("causality"), {"causality": "C0", "random": "0.5", "swap": "C2"}),
    )
    for axes, table, colours in pictures:
        layers, curves, lows, highs = _best(table, list(colours))
        for name, colour in colours.items():
            axes.plot(layers, curves[name], color=colour, marker=".", label=name.replace("_", " "))
        axes.fill_between(layers, lows, highs, color="C0", alpha=0.15, linewidth=0)
        axes.set_xlabel("layer of the subject's state")
        axes.set_ylim(-0.03, 1.03)
        axes.legend(fontsize=8)
    left.set_ylabel("share of held-out subjects")
    right.set_ylabel("share of pairs")
    return figure


def _best(table: Table, names: list[str]) -> tuple[list[int], dict[str, list[float]], list[float], list[float]]:
    """Of each layer the row whose third column is highest."""
    best: dict[int, dict[str, float]] = {}
    for row in table.rows:
        named = dict(zip(table.columns, row, strict=True))
        kept = best.get(named["layer"])  # type: ignore[arg-type]
        if kept is None or named[names[0]] > kept[names[0]]:  # type: ignore[operator]
            best[named["layer"]] = named  # type: ignore[index,assignment]
    rows = [best[layer] for layer in sorted(best)]
    curves = {name: [row[name] for row in rows] for name in names}
    return sorted(best), curves, [row["low"] for row in rows], [row["high"] for row in rows]
