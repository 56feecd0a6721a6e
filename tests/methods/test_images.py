"""Promise: images travel as pixels and nothing else, within limits that say how to raise them, and come out as PNG."""

import io
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

import interlace
from interlace import ImageLimits, Refused
from interlace.methods.notebook import Notebook
from interlace.methods.shared.images import Images, gathered, grid, png, to_model
from interlace.methods.shared.pictures import Picture
from interlace.protocol.errors import InvalidArtifact

RIGHTS = "drawn for this test"
_ORIENTATION = 0x0112


def _half(height: int = 4, width: int = 6) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (width, height), (255, 0, 0))
    picture.paste((0, 0, 255), (width // 2, 0, width, height))
    return picture


def _file(picture: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **more)
    return file.getvalue()


def test_each_source_gives_the_same_pixels(tmp_path: Path) -> None:
    picture = _half()
    (tmp_path / "one.png").write_bytes(_file(picture))
    array = numpy.asarray(picture)
    sources = [tmp_path / "one.png", str(tmp_path / "one.png"), _file(picture), picture, array, array / 255]
    sources += [torch.from_numpy(array.copy()), numpy.dstack([array, numpy.full((4, 6), 255, numpy.uint8)])]
    found = gathered(sources, "half", rights=RIGHTS)
    assert found.pixels.shape == (8, 4, 6, 3)
    assert all(torch.equal(one, torch.from_numpy(array.copy())) for one in found.pixels)
    assert len(set(found.sha256)) == 1
    assert found.captions == ("half",) * 8


def test_what_a_camera_wrote_stays_behind_but_up_is_up() -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = 6  # turn it a quarter to see it upright
    exif[0x010E] = "the garden of the Quackenbushes"
    data = _file(_half(16, 16), "JPEG", exif=exif, comment=b"51.5 N", quality=95)
    assert b"Quackenbush" in data
    found = gathered([data], rights=RIGHTS)
    top, bottom = found.pixels[0, 1].float().mean(0), found.pixels[0, -2].float().mean(0)
    assert top[0] > 200 > 50 > top[2]
    assert bottom[2] > 200 > 50 > bottom[0]
    again = png(found.pixels[0])
    assert b"Quackenbush" not in again
    assert b"51.5" not in again
    with Image.open(io.BytesIO(again)) as opened:
        assert (opened.format, dict(opened.getexif()), opened.info) == ("PNG", {}, {})


def test_what_is_transparent_lies_on_white() -> None:
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert gathered([clear], rights=RIGHTS).pixels.unique().tolist() == [255]


def test_a_size_cuts_to_the_middle() -> None:
    wide = Image.new("RGB", (40, 10), (0, 0, 255))
    wide.paste((255, 0, 0), (15, 0, 25, 10))
    found = gathered([wide, _half(10, 10)], rights=RIGHTS, size=10)
    assert found.pixels.shape == (2, 10, 10, 3)
    assert found.pixels[0, 5, 5].tolist() == [255, 0, 0]
    assert found.resized(10) is found
    assert found.resized(5).pixels.shape == (2, 5, 5, 3)


@pytest.mark.parametrize(
    ("sources", "how", "sentence"),
    [
        ([], {}, "no images"),
        ([_half(), _half(4, 8)], {}, r"Image 1 is 4 x 8, and the first is 4 x 6\. Give size"),
        ([_half()] * 3, {"limits": ImageLimits(images=2)}, r"more than 2; raise it with `limits=.*images"),
        ([_file(_half(90, 90))], {"limits": ImageLimits(file_bytes=99)}, r"over 99; .*file_bytes"),
        ([_file(_half(2, 90))], {"limits": ImageLimits(side=80)}, r"2 x 90 pixels, over 80 a side; .*side="),
        ([_file(_half(), "GIF")], {}, "Image 0 is neither PNG nor JPEG"),
        ([_file(_half(64, 64))[:-40]], {}, "is damaged"),
        (["/nowhere.png"], {}, r"Image 0 \(/nowhere.png\) cannot be read: No such file"),
        ([numpy.zeros((2, 2, 2))], {}, r"shape \[2, 2, 2\]; expected"),
        ([numpy.full((2, 2), 7.0)], {}, "floats outside 0 to 1"),
        ([numpy.zeros((2, 2), numpy.int64)], {}, "of the type int64"),
        ([_half()], {"captions": ["a", "b"]}, "2 captions for 1 images"),
        ([_half()], {"rights": " "}, "by what right"),
    ],
)
def test_what_is_wrong_is_named(sources: list[Any], how: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidArtifact, match=sentence):
        gathered(sources, **{"rights": RIGHTS, **how})


def test_a_picture_that_is_too_large_is_not_even_decoded() -> None:
    """What it would be is in its header: a small file may hold gigabytes of black."""
    for side, sentence in ((8_000, "pixels, over 4,096 a side"), (14_000, "far more than 4,096")):
        with pytest.raises(InvalidArtifact, match=sentence):
            gathered([_file(Image.new("1", (side, side)))], rights=RIGHTS)


def test_to_a_server_and_back(client: interlace.Client, tmp_path: Path) -> None:
    sources = [_half(), numpy.zeros((4, 6, 3), numpy.uint8)]
    kept = client.artifacts.upload_images(sources, ["half", "black"], rights=RIGHTS, name="two")
    assert (kept.kind, kept.facts) == ("images", {"images": 2, "height": 4, "width": 6, "rights": RIGHTS})
    found = client.artifacts.images(kept)
    assert torch.equal(found.pixels, gathered(sources, rights=RIGHTS).pixels)
    assert (found.captions, found.rights) == (("half", "black"), RIGHTS)
    here = Notebook(tmp_path, bar=False)
    assert Images.of(here.open(here.artifact("images", *found.pack()))).sha256 == found.sha256
    assert found.some([1]).captions == ("black",)


@pytest.mark.parametrize(
    ("tensors", "changes", "sentence"),
    [
        ({"images": torch.zeros(1, 4, 6, 3)}, {}, "of the type U8"),
        ({"images": torch.zeros(4, 6, 3, dtype=torch.uint8)}, {}, r"shape \[4, 6, 3\]"),
        ({}, {"captions": ["a", "b"]}, "`captions` in images.json must be 1 texts"),
        ({}, {"rights": ""}, "by what right"),
        ({}, {"sha256": ["00"]}, "64 hex digits"),
        ({"images": torch.zeros(1, 1, 5000, 3, dtype=torch.uint8)}, {}, "4,096 pixels a side"),
    ],
)
def test_a_server_takes_no_others(
    client: interlace.Client, tensors: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    good, config = gathered([_half()], rights=RIGHTS).pack()
    with pytest.raises(Refused, match=sentence):
        client.artifacts.keep("images", {**good, **tensors}, {**config, **changes})


def test_pixels_that_were_changed_are_noticed(tmp_path: Path) -> None:
    tensors, config = gathered([_half()], rights=RIGHTS).pack()
    notebook = Notebook(tmp_path, bar=False)
    with pytest.raises(InvalidArtifact, match="not the one that its `sha256` names"):
        Images.of(notebook.open(notebook.artifact("images", {"images": 255 - tensors["images"]}, config)))


def test_a_grid_and_a_picture() -> None:
    pixels = gathered([_half(), _half(), _half()], rights=RIGHTS).pixels
    data = grid(pixels, 2, labels=["a", "b", "c"], rows=["one", "two"], scale=3)
    with Image.open(io.BytesIO(data)) as sheet:
        assert sheet.height == 2 * (4 * 3 + 2 + 12) + 2
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(10_000) or []}
    assert {(255, 0, 0), (0, 0, 255), (255, 255, 255)} <= colours
    picture = Picture.of("three", data)
    assert Picture.model_validate_json(picture.model_dump_json())._repr_png_() == data


def test_pixels_of_a_model() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    values = to_model(pixels)
    assert (values.shape, values.min(), values.max()) == ((1, 3, 16, 16), -1, 1)
    assert torch.equal(values[:, 0].flatten(), torch.arange(256) / 127.5 - 1)
