"""What a denoiser's passes cost, from counts alone: for `estimate`, without torch."""

from interlace.methods.base import ModelFacts

#: Numbers of a UNet that a row keeps for going backward, by channels times positions of each of its blocks. Counted in
#: the mini pipeline (one layer a block): 143; Stable Diffusion has two.
_KEPT = 256
#: At once, forward alone.
_AT_ONCE = 24


def positions(facts: ModelFacts, size: tuple[int, int] | None = None) -> int:
    """Positions of one picture's latents, of the size that the denoiser was made for, or in latents' sides."""
    _, height, width = facts.latents or (4, 64, 64)
    height, width = size or (height, width)
    return height * width


def images_in(facts: ModelFacts, name: str, otherwise: int) -> int:
    """How many images an artifact holds that the params name; a guess where nobody has looked."""
    return facts.images[name][0] if name in facts.images else otherwise


def bytes_forward(facts: ModelFacts, rows: int) -> int:
    """Of a pass of so many rows."""
    return rows * _AT_ONCE * _numbers(facts) * 4


def bytes_backward(facts: ModelFacts, rows: int) -> int:
    """Of a pass of so many rows with its graph."""
    return rows * _KEPT * _numbers(facts) * 4


def bytes_lora(facts: ModelFacts, rank: int) -> int:
    """Of a LoRA on all attention, with gradients and Adam's averages: about ten layers of each width, eight times."""
    return sum(80 * 2 * width * rank * 16 for width in facts.widths)


def _numbers(facts: ModelFacts) -> int:
    return sum(width * max(1, positions(facts) >> (2 * level)) for level, width in enumerate(facts.widths))
