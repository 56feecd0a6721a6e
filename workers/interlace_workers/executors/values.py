"""The parent's end of values that stream: where a child says that they lie, checked, and the way out of its file."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from interlace.protocol.errors import LimitExceeded
from interlace.protocol.frames import BrokenFrame, Value
from interlace.protocol.job import Limits

_CHUNK = 64 << 20  # bytes that the kernel is asked to copy at a time


@dataclass(frozen=True)
class Streamed:
    """A value that left before the job's end. Opaque bytes, which can be had until the next happening is asked for."""

    #: From 1; it starts over where the job is run again.
    number: int
    name: str
    step: int | None
    #: Bytes.
    size: int
    file: int
    offset: int

    def read(self) -> bytes:
        """The value's bytes, for a small one. Raises BrokenFrame where the child has cut its file."""
        data = os.pread(self.file, self.size, self.offset)
        if len(data) < self.size:
            raise BrokenFrame("the file of values was cut")
        return data

    def copy(self, target: Path) -> None:
        """Write the value into a file, past our own memory. Raises BrokenFrame as `read`, and OSError."""
        copy_out(self.file, self.offset, self.size, target)


def copy_out(fd: int, offset: int, size: int, target: Path) -> None:
    """Write some bytes of a child's file into another. Raises BrokenFrame where the child has cut it, and OSError."""
    with target.open("wb", buffering=0) as file:
        while size:
            copied = os.sendfile(file.fileno(), fd, offset, min(size, _CHUNK))
            if copied == 0:
                raise BrokenFrame("a file of the child's was cut")
            offset, size = offset + copied, size - copied


class Inlet:
    """A job's file of values, and what its child said of it. The child may write to both what it likes."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._file: IO[bytes] | None = None
        self._number = 0
        self._left = limits.result_bytes

    def open(self, folder: Path) -> int:
        """A descriptor of an empty file without a name, on the disk of ``folder``, for the child."""
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by close()
        return self._file.fileno()

    def take(self, body: bytes) -> Streamed:
        """Read a frame's body. Raises BrokenFrame, LimitExceeded."""
        if self._file is None:
            raise BrokenFrame("a value of a job that cannot stream any")
        value = Value.decode(body)
        fd = self._file.fileno()
        if value.offset + value.size > os.fstat(fd).st_size:
            raise BrokenFrame(f"a value of {value.size} bytes at {value.offset}, behind the end of its file")
        if self._number >= self._limits.streamed_values:
            most = self._limits.streamed_values
            raise LimitExceeded("The number of streamed values", most, "values", "limits.streamed_values")
        if value.size > self._left:
            raise LimitExceeded("What streams", self._limits.result_bytes, "bytes", "limits.result_bytes")
        self._number += 1
        self._left -= value.size
        return Streamed(self._number, value.name, value.step, value.size, fd, value.offset)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
