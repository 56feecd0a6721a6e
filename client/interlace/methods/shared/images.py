"""Images in and out: files and arrays become pixels without anything else, pixels become PNG.

Only here is an image's file ever decoded, and here is the client's machine, or a notebook's: a server is given pixels.
What a camera or a program has written beside them (EXIF, comments, thumbnails, colour profiles) does not come along.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from torch import Tensor

from interlace.methods.base import Opened, Report
from interlace.protocol.errors import InvalidArtifact
from interlace.protocol.kinds import LONGEST_CAPTION, LONGEST_SIDE, MOST_IMAGES

FORMAT = 1
_FORMATS = ("PNG", "JPEG")
_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class ImageLimits:
    """What is taken in at most, of one call. Give others to raise them."""

    #: Images.
    images: int = 10_000
    #: Bytes of one file.
    file_bytes: int = 8 << 20
    #: Pixels of the longer side, before it is made smaller.
    side: int = LONGEST_SIDE


LIMITS = ImageLimits()


@dataclass(frozen=True)
class Images:
    """Images of one size, what each shows, and by what right they are used."""

    #: uint8 [n, h, w, 3], on the CPU
    pixels: Tensor
    captions: tuple[str, ...]
    rights: str
    #: Of each image's pixels, row by row: 64 hex digits.
    sha256: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raises InvalidArtifact."""
        shape = list(self.pixels.shape)
        if self.pixels.dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3 or not self.pixels.numel():
            raise InvalidArtifact(f"Images are uint8 [n, h, w, 3]; these are {self.pixels.dtype} {shape}.")
        if len(self.captions) != len(self) or len(self.sha256) != len(self):
            raise InvalidArtifact(f"{len(self.captions)} captions for {len(self)} images; give one for each.")
        if longest := [one for one in self.captions if len(one) > LONGEST_CAPTION]:
            raise InvalidArtifact(f"A caption has {len(longest[0]):,} characters; at most {LONGEST_CAPTION:,}.")
        if not self.rights.strip():
            raise InvalidArtifact("`rights` is empty; say by what right the images are used, such as a licence.")

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def of_pixels(cls, pixels: Tensor, captions: Sequence[str] | str, rights: str) -> "Images":
        """Of pixels as they are; one caption may be all images'. Raises InvalidArtifact."""
        pixels = pixels.detach().cpu().contiguous()
        captions = (captions,) * len(pixels) if isinstance(captions, str) else tuple(captions)
        return cls(pixels, captions, rights, tuple(_sha256(one) for one in pixels))

    @classmethod
    def of(cls, opened: Opened) -> "Images":
        """Of an artifact of the kind `images`. Raises InvalidArtifact, also where pixels are not those it names."""
        config = opened.config
        try:
            said = tuple(config["captions"]), str(config["rights"]), tuple(config["sha256"])
            found = cls(opened.tensors["images"], *said)
        except (KeyError, TypeError) as error:
            raise InvalidArtifact(f"{opened.ref} is no artifact of images: {error} is missing or wrong.") from None
        for number, (one, sha256) in enumerate(zip(found.pixels, found.sha256, strict=True)):
            if _sha256(one) != sha256:
                raise InvalidArtifact(f"Image {number} of {opened.ref} is not the one that its `sha256` names.")
        return found

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and configuration of an artifact of the kind `images`."""
        config = {
            "format": FORMAT,
            "captions": list(self.captions),
            "rights": self.rights,
            "sha256": list(self.sha256),
        }
        return {"images": self.pixels}, config

    def some(self, which: Sequence[int]) -> "Images":
        """Those at some places, in that order."""
        taken = self.pixels[torch.tensor(list(which), dtype=torch.long)]
        captions = tuple(self.captions[one] for one in which)
        return Images(taken, captions, self.rights, tuple(self.sha256[one] for one in which))

    def resized(self, size: int) -> "Images":
        """Square ones of ``size`` pixels: the middle, made smaller or larger (Lanczos). The same if they are so."""
        if self.pixels.shape[1:3] == (size, size):
            return self
        made = [_fitted(Image.fromarray(one.numpy()), (size, size)) for one in self.pixels]
        return Images.of_pixels(torch.stack(made), self.captions, self.rights)


def opened(report: Report, name: str) -> Images:
    """The images that a method's params name. Raises InvalidArtifact."""
    return Images.of(report.open(name, "images"))


def keep(report: Report, images: Images, *, name: str = "", **more: Any) -> str:
    """Keep images as an artifact, and give what names it; ``more`` goes into its configuration."""
    tensors, config = images.pack()
    return report.artifact("images", tensors, {**config, **more}, name=name)


def gathered(
    sources: Sequence[Any],
    captions: Sequence[str] | str = "",
    *,
    rights: str,
    size: int | tuple[int, int] | None = None,
    limits: ImageLimits = LIMITS,
) -> Images:
    """Images of paths or bytes of PNG and JPEG files, of PIL images, of arrays or tensors.

    Arrays are [h, w], [h, w, 3] or [h, w, 4], uint8, or floats from 0 to 1. ``size``, one number or (height, width),
    has each cut to its middle and resized; without it all must be of one size. Raises InvalidArtifact, with the number
    of the image.
    """
    if not sources:
        raise InvalidArtifact("There are no images; give paths, PIL images or arrays.")
    if len(sources) > min(limits.images, MOST_IMAGES):
        raise InvalidArtifact(
            f"{len(sources):,} images are more than {min(limits.images, MOST_IMAGES):,}; raise it with "
            f"`limits=interlace.ImageLimits(images=...)` (an artifact holds {MOST_IMAGES:,}), or keep them in several."
        )
    wanted = (size, size) if isinstance(size, int) else size
    made = []
    for number, source in enumerate(sources):
        picture = _read(source, f"Image {number}{_named(source)}", limits)
        made.append(_fitted(picture, wanted or (picture.height, picture.width)))
        if made[-1].shape != made[0].shape:
            raise InvalidArtifact(
                f"Image {number}{_named(source)} is {picture.height} x {picture.width}, and the first is "
                f"{made[0].shape[0]} x {made[0].shape[1]}. Give size=..., to which each is cut and resized."
            )
    return Images.of_pixels(torch.stack(made), captions, rights)


def png(pixels: Tensor) -> bytes:
    """One image, uint8 [h, w, 3], as PNG without metadata."""
    file = io.BytesIO()
    Image.fromarray(pixels.detach().cpu().contiguous().numpy()).save(file, "PNG", optimize=True)
    return file.getvalue()


def grid(
    pixels: Tensor,
    columns: int,
    *,
    labels: Sequence[str] = (),
    rows: Sequence[str] = (),
    scale: int = 1,
    gap: int = 2,
) -> bytes:
    """Images, uint8 [n, h, w, 3], row by row on white, as one PNG.

    ``labels`` are written under each image, ``rows`` to the left of each row; ``scale`` enlarges by whole pixels.
    """
    n, height, width = len(pixels), pixels.shape[1] * scale, pixels.shape[2] * scale
    under = 12 if labels else 0
    font = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = 8 + max((int(font.textlength(one)) for one in rows), default=-8)
    down = -(-n // columns)
    sheet = Image.new("RGB", (left + columns * (width + gap) + gap, down * (height + gap + under) + gap), _WHITE)
    draw = ImageDraw.Draw(sheet)
    for number, one in enumerate(pixels.cpu()):
        x, y = left + gap + number % columns * (width + gap), gap + number // columns * (height + gap + under)
        picture = Image.fromarray(one.contiguous().numpy())
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y))
        if number < len(labels):
            draw.text((x, y + height), labels[number], fill=(60, 60, 60))
    for number, row in enumerate(rows[:down]):
        draw.text((4, gap + number * (height + gap + under) + height // 2 - 6), row, fill=(60, 60, 60))
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def to_model(pixels: Tensor) -> Tensor:
    """uint8 [n, h, w, 3] as a pipeline's VAE has it: float32 [n, 3, h, w] from -1 to 1."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1


def _read(source: Any, what: str, limits: ImageLimits) -> Image.Image:
    """RGB, upright as its EXIF says, with what is transparent on white. Raises InvalidArtifact."""
    if isinstance(source, Image.Image):
        return _plain(source, what, limits)
    if isinstance(source, str | Path | bytes):
        data = _bytes(source, what, limits)
        try:
            # The header alone is read here: whether it is too large shows before a pixel is decoded.
            with Image.open(io.BytesIO(data), formats=_FORMATS) as opened_:
                return _plain(opened_, what, limits)
        except Image.DecompressionBombError:
            raise InvalidArtifact(f"{what} has far more than {limits.side:,} pixels a side; make it smaller.") from None
        except UnidentifiedImageError:
            raise InvalidArtifact(f"{what} is neither PNG nor JPEG.") from None
        except (OSError, SyntaxError, ValueError) as error:
            raise InvalidArtifact(f"{what} is damaged: {error}.") from None
    return _plain(_of_array(source, what), what, limits)


def _bytes(source: str | Path | bytes, what: str, limits: ImageLimits) -> bytes:
    try:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if size > limits.file_bytes:
            raise InvalidArtifact(
                f"{what} has {size:,} bytes, over {limits.file_bytes:,}; make it smaller, or raise it with "
                "`limits=interlace.ImageLimits(file_bytes=...)`."
            )
        return source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise InvalidArtifact(f"{what} cannot be read: {error.strerror}.") from None


def _plain(picture: Image.Image, what: str, limits: ImageLimits) -> Image.Image:
    if max(picture.size) > limits.side:
        raise InvalidArtifact(
            f"{what} is {picture.height:,} x {picture.width:,} pixels, over {limits.side:,} a side; make it smaller, "
            "or raise it with `limits=interlace.ImageLimits(side=...)`."
        )
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        whole = picture.convert("RGBA")
        under = Image.new("RGBA", whole.size, (*_WHITE, 255))
        return Image.alpha_composite(under, whole).convert("RGB")
    return picture.convert("RGB")


def _of_array(source: Any, what: str) -> Image.Image:
    array = source.detach().cpu().numpy() if isinstance(source, Tensor) else numpy.asarray(source)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise InvalidArtifact(
            f"{what} has the shape {list(array.shape)}; expected [h, w], [h, w, 3] or [h, w, 4], or a path, the bytes "
            "of a file, or a PIL image."
        )
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise InvalidArtifact(f"{what} has floats outside 0 to 1; expected those, or uint8 from 0 to 255.")
        array = (array * 255).round().astype(numpy.uint8)
    if array.dtype != numpy.uint8:
        raise InvalidArtifact(f"{what} is of the type {array.dtype}; expected uint8, or floats from 0 to 1.")
    return Image.fromarray(numpy.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """[h, w, 3]"""
    height, width = size
    if max(size) > LONGEST_SIDE or min(size) < 1:
        raise InvalidArtifact(f"A size of {height} x {width}; expected 1 to {LONGEST_SIDE:,} pixels a side.")
    if (picture.height, picture.width) != size:
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(numpy.array(picture))


def _named(source: Any) -> str:
    return f" ({source})" if isinstance(source, str | Path) else ""


def _sha256(pixels: Tensor) -> str:
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
