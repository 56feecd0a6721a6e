"""Patching as two heat maps, one for each direction: layers from below, tokens from the left."""

from typing import Any

from matplotlib.figure import Figure

from interlace.methods.base import Result


def plot(result: Result) -> Figure:
    """How far the answer follows each state; 0 white, 1 dark, beyond both in the other colour."""
    rows: list[tuple[Any, ...]] = list(result.table("effects").rows)
    tokens: list[tuple[Any, ...]] = list(result.table("tokens").rows)
    layers = sorted({row[1] for row in rows})
    figure = Figure(figsize=(2.4 + 0.8 * len(tokens), 1.3 + 0.2 * len(layers)), layout="constrained")
    axes: list[Any] = list(figure.subplots(1, 2, squeeze=False)[0])
    for axis, side, other in zip(axes, "ab", "ba", strict=True):
        mine = {(row[1], row[2]): row[4] for row in rows if row[0] == side}
        grid = [[mine.get((layer, at), float("nan")) for at in range(len(tokens))] for layer in layers]
        image = axis.imshow(grid, origin="lower", aspect="auto", cmap="RdBu", vmin=-1, vmax=1)
        names = [f"{a}" if a == b else f"{a} / {b}" for *_, a, b in tokens]
        axis.set_xticks(range(len(tokens)), names, fontsize=7, rotation=45)
        axis.set_yticks(range(len(layers)), [str(one) for one in layers], fontsize=7)
        axis.set_title(f"states of {other} in {side}", fontsize=9)
        axis.set_ylabel("layer", fontsize=8)
    figure.colorbar(image, ax=axes, label="effect", shrink=0.8)
    return figure
