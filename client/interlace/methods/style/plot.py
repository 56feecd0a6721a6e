"""The losses by step; what was drawn is in `pictures`."""

import io

from matplotlib.figure import Figure
from matplotlib.image import imread

from interlace.methods.base import Result
from interlace.methods.style.spec import StyleResult, StyliseResult


def plot(result: Result) -> Figure:
    """On the left both losses, on the right what was drawn."""
    assert isinstance(result, StyleResult)
    history = result.table("history").rows
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    steps = [row[0] for row in history]
    for column, name in ((1, "style"), (2, "preservation, before its weight")):
        left.plot(steps, [row[column] for row in history], label=name)
    left.set_yscale("symlog", linthresh=1e-4)
    left.set_xlabel("step")
    left.set_ylabel("mean square")
    left.legend(fontsize=7)
    right.axis("off")
    if result.pictures:
        right.imshow(imread(io.BytesIO(result.pictures[-1].data), format="png"), interpolation="nearest")
        right.set_title(result.pictures[-1].title, fontsize=8)
    return figure


def plot_stylised(result: Result) -> Figure:
    """Pictures as given and redrawn."""
    assert isinstance(result, StyliseResult)
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.imshow(imread(io.BytesIO(result.pictures[0].data), format="png"), interpolation="nearest")
    axes.set_title(f"the adapter is on in {result.steps_on} of {result.steps_run} steps", fontsize=8)
    return figure
