"""What a denoiser's passes cost, from counts alone: for `estimate`, without torch."""

from interlace.methods.base import ModelFacts

#: Numbers of a UNet that a row keeps for going backward, by channels times positions of each of its blocks. Counted in
#: the mini pipeline (one layer a block): 143; Stable Diffusion has two.
_KEPT = 256
#: At once, forward alone.
_AT_ONCE = 24


#: Height and width of a picture, in pixels; None: what the denoiser was made for.
Size = tuple[int, int] | None


def positions(facts: ModelFacts, size: Size = None) -> int:
    """Positions of one picture's latents."""
    _, height, width = facts.latents or (4, 64, 64)
    if size is not None:
        height, width = (max(1, side // facts.pixels) for side in size)
    return height * width


def square(side: int | None) -> Size:
    """Of a resolution that the params name."""
    return None if side is None else (side, side)


def size_in(facts: ModelFacts, name: str) -> Size:
    """Of the images of an artifact that the params name; None where nobody has looked."""
    return facts.images[name][1:] if name in facts.images else None


def images_in(facts: ModelFacts, name: str, otherwise: int) -> int:
    """How many images an artifact holds that the params name; a guess where nobody has looked."""
    return facts.images[name][0] if name in facts.images else otherwise


def bytes_forward(facts: ModelFacts, rows: int, size: Size = None) -> int:
    """Of a pass of so many rows."""
    return rows * _AT_ONCE * _numbers(facts, size) * 4


def bytes_backward(facts: ModelFacts, rows: int, size: Size = None) -> int:
    """Of a pass of so many rows with its graph."""
    return rows * _KEPT * _numbers(facts, size) * 4


def bytes_lora(facts: ModelFacts, rank: int) -> int:
    """Of a LoRA on all attention, with gradients and Adam's averages: about ten layers of each width, eight times."""
    return sum(80 * 2 * width * rank * 16 for width in facts.widths)


def _numbers(facts: ModelFacts, size: Size) -> int:
    return sum(width * max(1, positions(facts, size) >> (2 * level)) for level, width in enumerate(facts.widths))
