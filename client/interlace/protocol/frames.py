"""What a sandboxed child may say to its parent: length-bounded, typed, never pickled.

A frame is one kind byte, a 4-byte big-endian length and that many bytes. The parent reads from a pipe that
hostile code may also write to, so every frame is checked and an unknown one ends the conversation.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct("!BI")
LONGEST_BODY = 256 << 10  # bytes


class FrameKind(IntEnum):
    #: The payload was read; user code starts. Empty body.
    RUNNING = 1
    #: The result file is complete. Body: three doubles, what `interlace_workers/steps.py` says.
    DONE = 2
    #: User code, or reading the payload, raised. Body: UTF-8 text for the user.
    FAILED = 3


class Frame(NamedTuple):
    kind: FrameKind
    body: bytes


class BrokenFrame(ValueError):
    """The bytes are not frames of ours."""


def encode(kind: FrameKind, body: bytes = b"") -> bytes:
    """A frame's bytes; a body over the bound is cut, its end marked."""
    if len(body) > LONGEST_BODY:
        body = body[: LONGEST_BODY - 32] + b"\n... (cut)"
    return HEADER.pack(kind, len(body)) + body


class FrameReader:
    """Splits a byte stream into frames. Holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that ``data`` completes. Raises BrokenFrame."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer)
            if length > LONGEST_BODY or kind not in FrameKind.__members__.values():
                raise BrokenFrame(f"kind {kind}, length {length}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield Frame(FrameKind(kind), body)
