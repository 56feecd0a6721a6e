"""The strip as a row of pictures, or one for each weight of the style."""

import io
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from interlace.methods.base import Result


def plot(result: Result) -> Figure:
    """From noise to picture; below each after how many steps it is."""
    pictures: list[Any] = list(getattr(result, "pictures", []))
    weights = list(dict.fromkeys(one.weight for one in pictures))
    strips = [[one for one in pictures if one.weight == weight] for weight in weights]
    wide = max(map(len, strips))
    figure = Figure(figsize=(1.2 * wide + 0.4, 1.6 * len(strips)), layout="constrained")
    grid: Any = figure.subplots(len(strips), wide, squeeze=False)
    for row, strip, weight in zip(grid, strips, weights, strict=True):
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        for axis, picture in zip(row, strip, strict=False):
            axis.imshow(Image.open(io.BytesIO(picture.data)), interpolation="nearest")
            axis.set_xlabel(str(picture.step), fontsize=9)
        if weight is not None:
            row[0].set_ylabel(f"{weight:g}", fontsize=9)
    return figure
