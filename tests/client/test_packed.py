"""Whatever a worker has packed a result into, our client reads its content; what was not compressed, where it lies."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zstandard

from interlace._jobs import load
from interlace._packed import opened
from interlace_workers.child.writing import packing

SAVED = {"noise": torch.randn(90_000), "rest": list(range(1000)), "zeros": torch.zeros(3)}


def written() -> bytes:
    buffer = io.BytesIO()
    torch.save(SAVED, buffer, pickle_protocol=4)
    return buffer.getvalue()


def compressed(fd: int) -> packing.Packing:
    return packing.Packed(fd, zstandard.ZstdCompressor(level=1))


def packed(path: Path, kind: Callable[[int], packing.Packing], content: bytes, cuts: tuple[int, ...]) -> bytearray:
    """As a job's process writes it, in pieces."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    sink, first = kind(fd), 0
    for behind in (*cuts, len(content)):
        sink.write(memoryview(content)[first:behind])
        first = behind
    sink.close(len(content))
    os.close(fd)
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("kind", [packing.Raw, compressed, packing.Plain])
@pytest.mark.parametrize("cuts", [(), (64, 64, 1000), (131_072, 131_073)])
def test_a_result_is_what_was_saved(
    tmp_path: Path, kind: Callable[[int], packing.Packing], cuts: tuple[int, ...]
) -> None:
    found = load(packed(tmp_path / "r", kind, written(), cuts))
    assert torch.equal(found["noise"], SAVED["noise"])
    assert found["rest"] == SAVED["rest"]


@pytest.mark.parametrize("kind", [packing.Raw, packing.Plain])
def test_what_was_not_compressed_is_read_in_place(tmp_path: Path, kind: Callable[[int], packing.Packing]) -> None:
    content = written()
    frame = packed(tmp_path / "r", kind, content, (10, 200_000))
    file = opened(frame)
    at = frame.index(content[-100:])
    frame[at : at + 100] = bytes(100)
    file.seek(-100, io.SEEK_END)
    assert file.read(200) == bytes(100)  # a copy would not know
    file.seek(0)
    assert file.read() == content[:-100] + bytes(100)
    for first, count in ((0, 1), (9, 2), (131_060, 80_000), (199_999, 2), (len(content) - 100, 0)):
        file.seek(first)
        assert file.read(count) == content[:-100][first : first + count]
        assert file.tell() == first + count


@pytest.mark.parametrize("damage", ["cut", "longer", "size", "kind"])
def test_a_damaged_frame_is_said_to_be_one(tmp_path: Path, damage: str) -> None:
    frame = packed(tmp_path / "r", packing.Raw, written(), ())
    if damage == "cut":
        del frame[-1000:]
    elif damage == "longer":
        frame[14:17] = (1 << 20 << 3).to_bytes(3, "little")
    elif damage == "size":
        frame[6:14] = (1 << 30).to_bytes(8, "little")
    else:
        frame[14] |= 0b110
    with pytest.raises((zstandard.ZstdError, RuntimeError)):
        load(frame)


def test_small_ones_and_those_of_other_writers(tmp_path: Path) -> None:
    content = written()
    for frame in (packing.small(content), zstandard.ZstdCompressor(write_checksum=True).compress(content)):
        assert opened(frame).read() == content
