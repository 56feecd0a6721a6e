"""What torch.save wrote, out of the zstd frame that it may come in; without a copy where that did not compress it."""

import bisect
import io
import itertools
from typing import Any, BinaryIO, cast

_ZSTD = b"\x28\xb5\x2f\xfd"
#: A frame that says its content's size in 8 bytes, and has no dictionary and no checksum.
_WITH_SIZE = 0xC0
_HEADER = len(_ZSTD) + 2 + 8
_BLOCK_HEADER = 3
_RAW = 0


def opened(data: bytes | bytearray) -> BinaryIO:
    """A file of the content. Raises zstandard.ZstdError for a damaged frame."""
    if data[: len(_ZSTD)] != _ZSTD:
        return cast(BinaryIO, _Blocks(memoryview(data), [(0, len(data))]))
    blocks = _raw_blocks(data)
    if blocks is not None:
        return cast(BinaryIO, _Blocks(memoryview(data), blocks))
    import zstandard

    return io.BytesIO(zstandard.ZstdDecompressor().decompress(data))


def _raw_blocks(data: bytes | bytearray) -> list[tuple[int, int]] | None:
    """Where the blocks of a frame lie, first byte and bytes, if all of them are as they were; None for any other."""
    if len(data) < _HEADER or data[len(_ZSTD)] != _WITH_SIZE:
        return None
    size, at, last = int.from_bytes(data[_HEADER - 8 : _HEADER], "little"), _HEADER, 0
    found: list[tuple[int, int]] = []
    while not last and at + _BLOCK_HEADER <= len(data):
        header = int.from_bytes(data[at : at + _BLOCK_HEADER], "little")
        last, kind, length = header & 1, header >> 1 & 3, header >> 3
        if kind != _RAW:
            return None
        at += _BLOCK_HEADER
        found.append((at, length))
        at += length
    whole = last and at == len(data) and sum(length for _, length in found) == size
    return found if whole else None  # zstd says what is wrong with it


class _Blocks(io.RawIOBase):
    """Blocks of bytes as one file, read where they lie."""

    def __init__(self, data: memoryview, blocks: list[tuple[int, int]]) -> None:
        super().__init__()
        self._data = data
        self._starts = [start for start, _ in blocks]
        self._ends = list(itertools.accumulate(length for _, length in blocks))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1]}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        filled, index = 0, bisect.bisect_right(self._ends, self._at)
        while filled < len(target) and index < len(self._ends):
            left = self._ends[index] - self._at
            length = self._ends[index] - (self._ends[index - 1] if index else 0)
            first = self._starts[index] + length - left
            count = min(left, len(target) - filled)
            target[filled : filled + count] = self._data[first : first + count]
            filled, self._at, index = filled + count, self._at + count, index + 1
        return filled
