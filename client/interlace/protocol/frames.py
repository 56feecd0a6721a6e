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
LONGEST_NAME = 256  # bytes of a value's name in UTF-8
_VALUE = struct.Struct("!iQQ")
_NO_STEP = -1


class FrameKind(IntEnum):
    #: The payload was read; user code starts. Empty body.
    RUNNING = 1
    #: The result file is complete. Body: three doubles, what `interlace_workers/steps.py` says.
    DONE = 2
    #: User code, or reading the payload, raised. Body: UTF-8 text for the user.
    FAILED = 3
    #: A value lies in the file of values. Body: a `Value`.
    VALUE = 4
    #: How far the job is. Body: a `Progress` of `event.py`, as JSON.
    PROGRESS = 5
    #: A method has given an artifact. Body: a `Given` of `given.py`, as JSON.
    ARTIFACT = 6
    #: A method has laid down where it stands. Body: a `Kept` of `given.py`, as JSON.
    CHECKPOINT = 7
    #: A method shows a picture. Body: a `Shown` of `event.py`.
    PICTURE = 8


class Frame(NamedTuple):
    kind: FrameKind
    body: bytes


class BrokenFrame(ValueError):
    """The bytes are not frames of ours."""


class Value(NamedTuple):
    """Where a value that streams lies, and what it is called."""

    #: 1 to 256 bytes of UTF-8.
    name: str
    #: The step of a generation, from 0; None outside of steps.
    step: int | None
    #: In the file of values, in bytes.
    offset: int
    #: Bytes.
    size: int

    def encode(self) -> bytes:
        """The body of a frame. Raises ValueError for a name that is empty or too long."""
        name = self.name.encode()
        if not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(f"a value's name has 1 to {LONGEST_NAME} bytes, and {self.name[:40]!r} has {len(name)}")
        return _VALUE.pack(_NO_STEP if self.step is None else self.step, self.offset, self.size) + name

    @classmethod
    def decode(cls, body: bytes) -> "Value":
        """Raises BrokenFrame."""
        if not _VALUE.size < len(body) <= _VALUE.size + LONGEST_NAME:
            raise BrokenFrame(f"a value's frame of {len(body)} bytes")
        step, offset, size = _VALUE.unpack_from(body)
        try:
            name = body[_VALUE.size :].decode()
        except UnicodeDecodeError:
            raise BrokenFrame("a value's name is no UTF-8") from None
        if step < _NO_STEP:
            raise BrokenFrame(f"step {step}")
        return cls(name, None if step == _NO_STEP else step, offset, size)


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
