"""What a denoiser's passes cost, from counts alone: for `estimate`, without torch."""

from interlace.methods.base import ModelFacts

#: Numbers of a UNet that a row keeps for going backward, by channels times positions of each of its blocks. Counted in
#: the mini pipeline (one layer a block): 143; Stable Diffusion has two.
_KEPT = 256
#: At once, forward alone.
_AT_ONCE = 24
#: Numbers of an autoencoder at once, to or from a picture, by channels times pixels: 9 to 15 in Stable Diffusion's.
_AT_ONCE_VAE = 12
#: Bytes that kernels keep beside what they are given, at most and by weight. Fitted to three pipelines: nothing to be
#: seen at 3 M weights, 40 to 70 MiB at 0.5 G and 1.3 G.
_KERNELS, _KERNELS_BY_WEIGHT = 48 << 20, 1 / 8


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
    return rows * _AT_ONCE * _numbers(facts, size) * facts.weight_bytes


def bytes_backward(facts: ModelFacts, rows: int, size: Size = None) -> int:
    """Of a pass of so many rows with its graph, in 32 bits as the LoRA is."""
    return rows * _KEPT * _numbers(facts, size) * 4


def peak(facts: ModelFacts, denoiser: int, pictures: int, size: Size = None) -> int:
    """Of a run whose denoiser takes so many bytes, and whose autoencoder makes or reads so many pictures at once."""
    height, width = size or [side * facts.pixels for side in (facts.latents or (4, 64, 64))[1:]]
    vae = pictures * _AT_ONCE_VAE * facts.vae_width * height * width * facts.weight_bytes
    return max(denoiser, vae) + int(min(_KERNELS, facts.n_params * _KERNELS_BY_WEIGHT))


def bytes_digest(facts: ModelFacts) -> int:
    """Of the base's hash, which a LoRA is held against: a copy of the largest weight, a convolution of 3 by 3."""
    return 2 * 9 * max(facts.widths, default=0) ** 2 * facts.weight_bytes


def bytes_lora(facts: ModelFacts, rank: int) -> int:
    """Of a LoRA on all attention, with gradients and Adam's averages: about ten layers of each width, eight times."""
    return sum(80 * 2 * width * rank * 16 for width in facts.widths)


def _numbers(facts: ModelFacts, size: Size) -> int:
    return sum(width * max(1, positions(facts, size) >> (2 * level)) for level, width in enumerate(facts.widths))
