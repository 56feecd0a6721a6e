"""A picture of what there is by now, small enough to be told on the way."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from interlace.methods.shared.images import grid
from interlace.protocol.picture import LONGEST_PICTURE, LONGEST_SIDE

_COLUMNS = 8
_MOST = 2 * _COLUMNS  # pictures that are shown
_SIDE = 128  # pixels of one, about
_GAP = 2


def preview(pixels: Tensor) -> bytes:
    """The first 16 of some pictures, uint8 [n, height, width, 3], as one PNG that `check_picture` lets through.

    Small ones are enlarged by whole pixels; large ones are made smaller, and smaller still until they fit.
    """
    some = pixels[:_MOST].detach().cpu()
    columns = min(_COLUMNS, len(some))
    side = min(_SIDE, LONGEST_SIDE // columns - 2 * _GAP)
    while True:
        fitted = _within(some, side)
        data = grid(fitted, columns, scale=max(1, side // (2 * max(fitted.shape[1:3]))), gap=_GAP)
        if len(data) <= LONGEST_PICTURE or side == 1:
            return data
        side = max(1, side * 3 // 4)


def _within(pixels: Tensor, side: int) -> Tensor:
    """Of at most so many pixels for the longer side."""
    share = side / max(pixels.shape[1:3])
    if share >= 1:
        return pixels
    size = tuple(max(1, round(one * share)) for one in pixels.shape[1:3])
    smaller = interpolate(pixels.permute(0, 3, 1, 2).float(), size, mode="area")
    return smaller.round().to(torch.uint8).permute(0, 2, 3, 1)
