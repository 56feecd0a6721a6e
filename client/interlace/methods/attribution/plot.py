"""The images that rank first, and how methods compare where it is known what taught the model."""

import io

from matplotlib.figure import Figure
from matplotlib.image import imread

from interlace.methods.attribution.spec import AttributeResult
from interlace.methods.base import Result


def plot(result: Result) -> Figure:
    """On the left each query and its top, on the right average precision beside the baselines'."""
    assert isinstance(result, AttributeResult)
    bars = [one for one in result.metrics if one.name == "average_precision"]
    figure = Figure(figsize=(9 if bars else 6, 3.4), layout="constrained")
    sides = figure.subplots(1, 2, width_ratios=(2, 1)) if bars else [figure.subplots()]
    sides[0].axis("off")
    sides[0].imshow(imread(io.BytesIO(result.pictures[0].data), format="png"), interpolation="nearest")
    sides[0].set_title(result.pictures[0].title, fontsize=8)
    if bars:
        names = [one.split for one in bars][::-1]
        colours = ["C0" if name == "unlearning" else "0.7" for name in names]
        sides[1].barh(names, [one.value for one in bars][::-1], color=colours)
        sides[1].set_xlabel("average precision")
    return figure
