"""The strip as one row of pictures."""

import io
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from interlace.methods.base import Result


def plot(result: Result) -> Figure:
    """From noise to picture; below each after how many steps it is."""
    pictures: list[Any] = list(getattr(result, "pictures", []))
    figure = Figure(figsize=(1.2 * len(pictures), 1.6), layout="constrained")
    axes: list[Any] = list(figure.subplots(1, len(pictures), squeeze=False)[0])
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(Image.open(io.BytesIO(picture.data)), interpolation="nearest")
        axis.set_xlabel(str(picture.step), fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    return figure
