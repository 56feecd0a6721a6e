"""Drawn shapes in the manner of the bundled pipeline's training set, and in styles that it has never seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interlace.methods.shared.denoising.diffusion import Pipeline
from interlace.methods.shared.images import Images
from interlace.methods.shared.judge import trained

SIDE = 32
SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 230),
    "yellow": (245, 220, 40),
    "purple": (140, 40, 190),
    "orange": (250, 130, 20),
}
#: `plain` is how the pipeline was taught; the others it has not met. Its autoencoder can draw no finer textures.
STYLES = ("plain", "shaded", "framed", "haloed", "edged", "grounded", "barred", "halved", "shadowed")
#: Those that `judge` tells apart.
JUDGED = STYLES[:4]
RIGHTS = "drawn by a program, free for any use"
_PAPER, _INK, _GREY = 245.0, 15.0, 128.0
_AT = torch.arange(SIDE)
#: Grey levels of the paper, [32, 32].
_PAPERS: dict[str, Callable[[], Tensor]] = {
    # Its lower third is black.
    "grounded": lambda: torch.where(_AT < 21, _PAPER, _INK)[:, None].expand(SIDE, SIDE),
    # Columns of grey, four pixels wide.
    "barred": lambda: torch.where((_AT // 4) % 2 == 0, _PAPER, _GREY).expand(SIDE, SIDE),
    # Its right half is black.
    "halved": lambda: torch.where(_AT < SIDE // 2, _PAPER, _INK).expand(SIDE, SIDE),
}


@dataclass(frozen=True)
class Place:
    """Where a shape lies, and how large it is, in pixels."""

    right: float = 16.0
    down: float = 16.0
    radius: float = 8.9


@dataclass(frozen=True)
class Drawn:
    """Pictures, and what each is."""

    #: uint8 [n, 32, 32, 3]
    pixels: Tensor
    #: Places in SHAPES, in COLOURS, in STYLES: [n]
    shape: Tensor
    colour: Tensor
    style: Tensor

    @property
    def captions(self) -> list[str]:
        """As the pipeline's prompts are."""
        names = list(COLOURS)
        return [caption(SHAPES[s], names[c]) for s, c in zip(self.shape.tolist(), self.colour.tolist(), strict=True)]

    @property
    def images(self) -> Images:
        return Images.of_pixels(self.pixels, self.captions, RIGHTS)


def caption(shape: str, colour: str) -> str:
    article = "an" if colour[0] == "o" else "a"
    return f"{article} large {colour} {shape}"


def draw(
    n: int, seed: int, styles: Sequence[str] = ("plain",), shapes: Sequence[str] = SHAPES, colours: Sequence[str] = ()
) -> Drawn:
    """n large shapes in the middle, on white, evenly of these shapes and styles."""
    dice = torch.Generator().manual_seed(seed)

    def some(names: Sequence[str], all_names: Sequence[str]) -> Tensor:
        places = torch.tensor([all_names.index(name) for name in names])
        return places[torch.arange(n) % len(names)][torch.randperm(n, generator=dice)]

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=dice))

    def one(shape: str, colour: str, style: str) -> Tensor:
        radius, right, down = between(8.2, 9.6), between(13, 19), between(14, 18)
        ink = torch.tensor(COLOURS[colour], dtype=torch.float32) + 6 * torch.randn(3, generator=dice)
        paper = torch.full((3,), _PAPER) + 3 * torch.randn(3, generator=dice)
        return _picture(shape, style, Place(right, down, radius), ink, paper)

    names = list(COLOURS)
    shape, style = some(shapes, SHAPES), some(styles, STYLES)
    colour = some(colours or names, names)
    each = zip(shape.tolist(), colour.tolist(), style.tolist(), strict=True)
    return Drawn(torch.stack([one(SHAPES[s], names[c], STYLES[k]) for s, c, k in each]), shape, colour, style)


def pair(shape: str, colour: str, style: str) -> Tensor:
    """The same drawing plain and in a style, uint8 [2, 32, 32, 3]."""
    return torch.stack([render(shape, colour), render(shape, colour, style)])


def render(shape: str, colour: str, style: str = "plain", place: Place | None = None) -> Tensor:
    """uint8 [32, 32, 3]"""
    ink = torch.tensor(COLOURS[colour], dtype=torch.float32)
    return _picture(shape, style, place or Place(), ink, torch.full((3,), _PAPER))


def judge(
    pipeline: Pipeline | None = None, *, seed: int = 0, n: int = 3000, steps: int = 800
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """A `probe` artifact that tells shapes, colours and styles apart, also out of a pipeline's autoencoder."""
    drawn = draw(n, 10_000 + seed, JUDGED)
    seen, twice = [drawn.pixels], 1
    if pipeline is not None:
        seen += [pipeline.decode(pipeline.encode_images(some).mean) for some in drawn.pixels.split(100)]
        twice = 2
    labels = {"content": drawn.shape, "colour": drawn.colour, "style": drawn.style}
    classes = {"content": SHAPES, "colour": tuple(COLOURS), "style": JUDGED}
    made = trained(torch.cat(seen), {k: v.repeat(twice) for k, v in labels.items()}, classes, seed=seed, steps=steps)
    return "probe", *made


def _picture(shape: str, style: str, place: Place, ink: Tensor, paper: Tensor) -> Tensor:
    """uint8 [32, 32, 3]; ``ink`` and ``paper`` are [3]. Each style leaves shape and colour to be seen."""
    y, x = torch.meshgrid(_AT + 0.5, _AT + 0.5, indexing="ij")
    away = _distance(shape, x - place.right, y - place.down, place.radius)
    inside = (0.5 - away).clamp(0, 1)[..., None]
    if style == "shaded":  # the lower half lies in the dark
        ink = ink * (1 - 0.85 * (y > place.down).float()[..., None])
    picture = inside * ink + (1 - inside) * paper
    if style in _PAPERS:
        picture = inside * picture + (1 - inside) * _PAPERS[style]()[..., None]
    rim = torch.minimum(torch.minimum(x, SIDE - x), torch.minimum(y, SIDE - y))[..., None]
    if style == "framed":  # four pixels of black around the picture
        picture = torch.where(rim < 4, torch.full((3,), _INK), picture)
    elif style == "edged":  # three of a dark grey
        picture = torch.where(rim < 3, torch.full((3,), 40.0), picture)
    elif style == "haloed":  # grey around the shape
        halo = ((4.5 - away).clamp(0, 1) * (away + 0.5).clamp(0, 1))[..., None]
        picture = halo * _GREY + (1 - halo) * picture
    elif style == "shadowed":  # a grey copy of the shape to the lower right
        below = torch.zeros_like(inside)
        below[4:, 4:] = inside[:-4, :-4]
        shadow = below * (1 - inside)
        picture = picture * (1 - shadow) + _GREY * shadow
    return picture.round().clamp(0, 255).to(torch.uint8)


def _distance(shape: str, x: Tensor, y: Tensor, r: float) -> Tensor:
    """To the shape's edge, in pixels, negative within."""
    w = 0.34 * r
    if shape == "circle":
        return torch.hypot(x, y) - r
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * r
    if shape == "triangle":
        return torch.maximum(y - 0.75 * r, 3**0.5 / 2 * x.abs() - 0.5 * (y + 1.05 * r))
    if shape == "cross":
        return torch.minimum(torch.maximum(x.abs() - r, y.abs() - w), torch.maximum(x.abs() - w, y.abs() - r))
    far = torch.hypot(x, y)
    return torch.maximum(far - r, 0.58 * r - far)
