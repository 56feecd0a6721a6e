"""Pictures of the results, by matplotlib."""

from typing import Any

from interlace.methods.sae.spec import EvalResult, TrainResult

_BOARD = 128  # properties of an Othello board: 64 squares that are mine, 64 that are yours


def training(result: TrainResult, *, figure: Any = None) -> Any:
    """How sparsity and what is explained went, and p where it changed."""
    from matplotlib.figure import Figure

    figure = figure or Figure(figsize=(7, 3), layout="constrained")
    table = result.table("curve")
    columns = {name: [float(row[number] or 0) for row in table.rows] for number, name in enumerate(table.columns)}
    left, right = figure.subplots(1, 2)
    left.plot(columns["step"], columns["explained"], color="tab:blue")
    left.set(xlabel="step", ylabel="share of the variance explained", ylim=(0, 1))
    right.plot(columns["step"], columns["l0"], color="tab:orange")
    right.set(xlabel="step", ylabel="features on at a position (L0)", yscale="log")
    if len(set(columns["p"])) > 1:
        beside = right.twinx()
        beside.step(columns["step"], columns["p"], where="post", color="tab:grey")
        beside.set(ylabel="p", ylim=(0, 1.05))
    return figure


def properties(result: EvalResult, *, figure: Any = None) -> Any:
    """The best F1 of any feature for each property: on the board, where the properties are an Othello board's."""
    from matplotlib.figure import Figure

    figure = figure or Figure(figsize=(7, 3), layout="constrained")
    try:
        f1 = [float(row[3] or 0) for row in result.table("properties").rows]
    except KeyError:
        raise LookupError("There were no labels, so there is nothing to draw.") from None
    if len(f1) != _BOARD:
        axes = figure.subplots()
        axes.plot(sorted(f1, reverse=True))
        axes.set(xlabel="property", ylabel="best F1 of a feature", ylim=(0, 1))
        return figure
    for axes, title, some in zip(figure.subplots(1, 2), ("mine", "yours"), (f1[:64], f1[64:]), strict=True):
        shown = axes.imshow([some[row * 8 : row * 8 + 8] for row in range(8)], vmin=0, vmax=1, cmap="viridis")
        axes.set(title=title, xticks=range(8), yticks=range(8))
        axes.set_xticklabels("ABCDEFGH")
        axes.set_yticklabels(range(1, 9))
    figure.colorbar(shown, ax=figure.axes, label="best F1 of a feature")
    return figure
