"""How a result lies in its file: plain, or as one zstd frame (RFC 8878) whose header says the content's size.

Everything goes to the file as it comes. The size is written into the header at the end, since only then it is known.
What does not compress goes into raw blocks: a frame all the same, at the price of a copy to the file.
"""

import bisect
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import zstandard

#: Content of up to so many bytes is compressed in one call.
SMALL = 128 << 10
_SMALL_LEVEL = 3
#: To compress so little takes longer than it saves, as with `_NOT_WORTH_IT`, however well it compresses.
_TINY = 32 << 10
#: Twice as fast as level 3 on activations, and as small within 2 %.
_LEVEL = 1
#: Little but zstd's coding of single bytes, for data that hardly repeats: bfloat16 held in fp32 it packs four times as
#: fast as level 1, is unpacked twice as fast, and is as small within 8 %. It finds repeats only a few bytes away.
_CODED = zstandard.ZstdCompressionParameters(
    window_log=17, hash_log=6, chain_log=6, search_log=1, min_match=7, strategy=zstandard.STRATEGY_FAST
)
#: How much larger it may be for that.
_LARGER = 1.1
#: Compressed over plain size above which compression takes longer than it saves on a network of 400 Mbit/s and more.
#: Activations have 0.92 in fp32, 0.78 in bfloat16, 0.57 behind a ReLU; token ids have 0.25.
_NOT_WORTH_IT = 0.7
_SAMPLES, _SAMPLE, _SAMPLE_EVERY = 32, 16 << 10, 128 << 10  # at most, bytes, bytes

_BLOCK = 128 << 10  # bytes, the format's most
_LAST, _RAW = 1, 0
_MAGIC = b"\x28\xb5\x2f\xfd"
_SIZE_OF_8_BYTES = b"\xc0"
_WINDOW_OF_A_BLOCK = b"\x38"
_SIZE_AT = len(_MAGIC) + 2
#: zstd's header of a frame whose size it does not know: the magic number, a descriptor without flags, the window.
_HEADER_WITHOUT_SIZE = len(_MAGIC) + 2
#: Bytes that are compressed, or written, at a time. A call that writes 64 MiB takes ext4 eight times as long for each.
_PIECE = 1 << 20


class Packing(Protocol):
    """Takes a result's bytes in pieces and writes them to a file, from its beginning."""

    def write(self, data: memoryview) -> None: ...

    def close(self, size: int) -> None:
        """Complete the file of ``size`` bytes of content."""


def most_bytes(content: int) -> int:
    """The size that a file with so many bytes of content has at most."""
    return content + (content >> 12) + 1024


def small(data: bytes | bytearray) -> bytes:
    """One frame of it all."""
    if len(data) <= _TINY:
        return _header(_WINDOW_OF_A_BLOCK, len(data)) + _block(len(data), _LAST) + data
    return zstandard.ZstdCompressor(level=_SMALL_LEVEL).compress(data)


def choose(fd: int, samples: Sequence[memoryview]) -> Packing:
    """What suits content that looks like ``samples``; takes about 3 ms."""
    packed, coded = ratio(samples, _packer()), ratio(samples, _coder())
    if packed > _NOT_WORTH_IT:
        return Raw(fd)
    return Packed(fd, _coder() if coded < _LARGER * packed else _packer())


def ratio(sources: Sequence[memoryview], packer: zstandard.ZstdCompressor) -> float:
    """Compressed size over size of what ``sources`` have in them, from samples all over them."""
    ends = list(itertools.accumulate(map(len, sources)))
    total = ends[-1] if ends else 0
    count = max(1, min(_SAMPLES, total // _SAMPLE_EVERY))
    plain = packed = 0
    for number in range(count if total else 0):
        at = total * (2 * number + 1) // (2 * count)
        index = bisect.bisect_right(ends, at)
        source = sources[index]
        start = max(0, min(at - ends[index] + len(source), len(source) - _SAMPLE))
        sample = source[start : start + _SAMPLE]
        plain += len(sample)
        packed += len(packer.compress(sample))
    return packed / plain if plain else 1.0


def _packer() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=_LEVEL)


def _coder() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(compression_params=_CODED)


class Plain:
    """The content and nothing else."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: memoryview) -> None:
        for piece in _pieces(data, _PIECE):
            _write(self._fd, [piece])

    def close(self, size: int) -> None:
        pass


class Raw:
    """A frame of raw blocks."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        _write(fd, [_header(_WINDOW_OF_A_BLOCK)])

    def write(self, data: memoryview) -> None:
        for piece in _pieces(data, _PIECE):
            _write(self._fd, [part for block in _pieces(piece, _BLOCK) for part in (_block(len(block)), block)])

    def close(self, size: int) -> None:
        _write(self._fd, [_block(0, _LAST)])
        _set_size(self._fd, size)


class Packed:
    """A frame that zstd compresses, under a header of ours."""

    def __init__(self, fd: int, packer: zstandard.ZstdCompressor) -> None:
        self._fd = fd
        self._packer = packer.compressobj()
        #: What has come of zstd's own header; None once ours is written.
        self._begun: bytes | None = b""

    def write(self, data: memoryview) -> None:
        for piece in _pieces(data, _PIECE):
            self._take(self._packer.compress(piece))

    def close(self, size: int) -> None:
        self._take(self._packer.flush())
        _set_size(self._fd, size)

    def _take(self, packed: bytes) -> None:
        if self._begun is not None:
            self._begun += packed
            if len(self._begun) < _HEADER_WITHOUT_SIZE:
                return
            window = self._begun[_HEADER_WITHOUT_SIZE - 1 : _HEADER_WITHOUT_SIZE]
            packed = _header(window) + self._begun[_HEADER_WITHOUT_SIZE:]
            self._begun = None
        _write(self._fd, [packed])


def _pieces(data: memoryview, size: int) -> Iterator[memoryview]:
    return (data[start : start + size] for start in range(0, len(data), size))


def _header(window: bytes, size: int = 0) -> bytes:
    """The size may come later, by `_set_size`."""
    return _MAGIC + _SIZE_OF_8_BYTES + window + size.to_bytes(8, "little")


def _block(size: int, last: int = 0) -> bytes:
    return (size << 3 | _RAW << 1 | last).to_bytes(3, "little")


def _set_size(fd: int, size: int) -> None:
    os.pwrite(fd, size.to_bytes(8, "little"), _SIZE_AT)


def _write(fd: int, parts: Sequence[bytes | memoryview]) -> None:
    """Write all of it. Raises OSError."""
    views = [memoryview(part) for part in parts]
    written = os.writev(fd, views)
    for view in views:  # the kernel may have taken a part
        rest = view[min(written, len(view)) :]
        written -= len(view) - len(rest)
        while rest:
            rest = rest[os.write(fd, rest) :]
