"""Pictures as `shapes-diffusion-mini` draws them, and the same in styles that it has never seen, for methods on it."""

from collections.abc import Sequence

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 230),
    "yellow": (245, 220, 40),
    "purple": (140, 40, 190),
    "orange": (250, 130, 20),
}
STYLES = ("plain", "framed", "halved", "grounded", "barred", "shadowed")
SIDE = 32
#: Grey levels of the paper, [32, 32] of the numbers 0 to 31.
_PAPERS = {
    # Its right half is black.
    "halved": lambda at: torch.where(at < SIDE // 2, 245.0, 15.0).expand(SIDE, SIDE),
    # Its lower third is black.
    "grounded": lambda at: torch.where(at < 21, 245.0, 15.0)[:, None].expand(SIDE, SIDE),
    # Columns of grey, 8 pixels apart.
    "barred": lambda at: torch.where((at // 4) % 2 == 0, 245.0, 128.0).expand(SIDE, SIDE),
}


def prompt(shape: str, colour: str) -> str:
    """What the pipeline was trained to be told of it."""
    return f"a large {colour} {shape}"


def mask(shape: str, *, x: float = 16.0, y: float = 16.0, radius: float = 9.0) -> Tensor:
    """How much of each pixel the shape covers, [32, 32]."""
    down, right = torch.meshgrid(torch.arange(SIDE) + 0.5 - y, torch.arange(SIDE) + 0.5 - x, indexing="ij")
    far = (down.square() + right.square()).sqrt()
    thick = 0.34 * radius
    within = {
        "circle": far - radius,
        "square": torch.maximum(down.abs(), right.abs()) - 0.88 * radius,
        "triangle": torch.maximum(down - 0.75 * radius, 0.866 * right.abs() - 0.5 * (down + 1.05 * radius)),
        "cross": torch.minimum(
            torch.maximum(right.abs() - radius, down.abs() - thick),
            torch.maximum(right.abs() - thick, down.abs() - radius),
        ),
        "ring": torch.maximum(far - radius, 0.58 * radius - far),
    }[shape]
    return (0.5 - within).clamp(0, 1)


def render(shape: str, colour: str, style: str = "plain", dice: torch.Generator | None = None) -> Tensor:
    """uint8 [32, 32, 3]; ``dice`` moves place, size and colour a little."""
    place = torch.rand(3, generator=dice) if dice is not None else torch.full((3,), 0.5)
    tint = 6 * torch.randn(3, generator=dice) if dice is not None else torch.zeros(3)
    x, y, radius = (15.2 + 1.6 * place[0], 14.5 + 3 * place[1], 8.2 + 1.4 * place[2])
    cover = mask(shape, x=float(x), y=float(y), radius=float(radius))
    fill, paper = torch.tensor(COLOURS[colour], dtype=torch.float32) + tint, torch.full((3,), 245.0)
    plain = cover[..., None] * fill + (1 - cover[..., None]) * paper
    wide = mask(shape, x=float(x), y=float(y), radius=float(radius) + 2.5)
    return _styled(plain, cover[..., None], wide[..., None], style).clamp(0, 255).round().to(torch.uint8)


def _styled(plain: Tensor, cover: Tensor, wide: Tensor, style: str) -> Tensor:
    """Floats [32, 32, 3]. Each style leaves shape and colour to be seen."""
    rows = torch.arange(SIDE)
    if style == "framed":  # the paper has a dark edge
        inner = ((rows >= 3) & (rows < SIDE - 3)).float()
        frame = 1 - inner[:, None] * inner[None, :]
        return plain * (1 - frame[..., None]) + 40.0 * frame[..., None]
    if style in _PAPERS:
        paper = _PAPERS[style](rows)[..., None]
        return cover * plain + (1 - cover) * paper.expand_as(plain)
    if style == "shadowed":  # a grey copy of the shape to the lower right
        below = torch.zeros_like(cover)
        below[4:, 4:] = cover[:-4, :-4]
        shadow = below * (1 - cover)
        return plain * (1 - shadow) + 128.0 * shadow
    return plain


def pair(shape: str, colour: str, style: str) -> Tensor:
    """Content and style, uint8 [2, 32, 32, 3]."""
    return torch.stack([render(shape, colour), render(shape, colour, style)])


def many(style: str, each: int, seed: int, shapes: Sequence[str] = SHAPES) -> tuple[Tensor, Tensor, Tensor]:
    """``each`` of every shape and colour: pictures [n, 32, 32, 3], shapes [n] and colours [n] by number."""
    dice = torch.Generator().manual_seed(seed)
    found = [
        (render(shape, colour, style, dice), SHAPES.index(shape), number)
        for shape in shapes
        for number, colour in enumerate(COLOURS)
        for _ in range(each)
    ]
    pictures, first, second = zip(*found, strict=True)
    return torch.stack(pictures), torch.tensor(first), torch.tensor(second)
