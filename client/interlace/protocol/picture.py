"""A PNG that a job shows while it runs: small, of one plain kind, and read by nobody but whoever looks at it.

It comes out of a process that may be hostile and goes into browsers, so that its chunks are walked here, though no
pixel is decoded: a size, true colours, data, and nothing else.
"""

import struct
import zlib

LONGEST_PICTURE = 64 << 10  # bytes of the file
LONGEST_SIDE = 1024  # pixels
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct("!I4s")
_SIZE = struct.Struct("!IIBBBBB")
#: Eight bits of red, green and blue, compressed as all PNG are, not interlaced.
_PLAIN = (8, 2, 0, 0, 0)


def check_picture(data: bytes) -> None:
    """Raises ValueError for what is no such PNG: 8-bit RGB, at most 64 KiB and 1,024 pixels a side."""
    if len(data) > LONGEST_PICTURE:
        raise ValueError(f"a picture of {len(data):,} bytes; at most {LONGEST_PICTURE:,}")
    if not data.startswith(_SIGNATURE):
        raise ValueError("no PNG")
    kinds: list[bytes] = []
    at = len(_SIGNATURE)
    while at < len(data):
        kind, body, at = _chunk(data, at)
        if not kinds:
            _check_size(kind, body)
        kinds.append(kind)
    if len(kinds) < 3 or kinds[-1] != b"IEND" or set(kinds[1:-1]) != {b"IDAT"}:
        raise ValueError("a PNG with other chunks than its size, its data and its end")


def _chunk(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    """A chunk's kind and body, and where the next begins."""
    body = at + _CHUNK.size
    if body > len(data):
        raise ValueError("a PNG that is cut off")
    length, kind = _CHUNK.unpack_from(data, at)
    end = body + length
    if end + 4 > len(data) or zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
        raise ValueError("a PNG that is cut off or damaged")
    return kind, data[body:end], end + 4


def _check_size(kind: bytes, body: bytes) -> None:
    if kind != b"IHDR" or len(body) != _SIZE.size:
        raise ValueError("a PNG that does not begin with its size")
    width, height, *rest = _SIZE.unpack(body)
    if not (0 < width <= LONGEST_SIDE and 0 < height <= LONGEST_SIDE) or tuple(rest) != _PLAIN:
        raise ValueError(
            f"a PNG of {width} x {height} pixels, {rest}; expected 8-bit RGB, {LONGEST_SIDE} a side at most"
        )
