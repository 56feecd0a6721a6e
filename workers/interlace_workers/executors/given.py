"""The parent's end of what a method gives: where its child says that files lie, checked, and the way out of them."""

import hashlib
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from interlace.protocol.artifact import FILES
from interlace.protocol.errors import MAKE_ROOM, LimitExceeded
from interlace.protocol.frames import BrokenFrame
from interlace.protocol.given import Given, Kept, Region, artifact_id
from interlace.protocol.method import Allowance
from interlace_workers.executors.values import copy_out
from interlace_workers.order import MethodOrder


@dataclass(frozen=True)
class Artifact:
    """An artifact that a method has given; its files can be had until the job's end."""

    #: From 1.
    number: int
    #: What it shall be called; no other run has it.
    id: str
    kind: str
    name: str
    file: int
    files: Mapping[str, Region]

    @property
    def size(self) -> int:
        return sum(size for _, size in self.files.values())

    def copy(self, name: str, target: Path) -> None:
        """Write one of its files. Raises BrokenFrame where the child has cut what it had given, and OSError."""
        offset, size = self.files[name]
        copy_out(self.file, offset, size, target)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stood. Its bytes can be had until the next happening is asked for, or have been written over."""

    step: int
    size: int
    sha256: str
    file: int
    offset: int

    def copy(self, target: Path) -> bool:
        """Write it; False where it is not what the child has laid down. Raises BrokenFrame as above, and OSError."""
        copy_out(self.file, self.offset, self.size, target)
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


class Outbox:
    """A run's files of artifacts and checkpoints. The child may write to both what it likes."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._nonce = secrets.token_hex(16)
        self._artifacts: IO[bytes] | None = None
        self._checkpoints: IO[bytes] | None = None
        self._number = 0
        self._left = min(allowance.kept_artifact_bytes, allowance.artifact_bytes * allowance.kept_artifacts)

    @property
    def order(self) -> MethodOrder:
        """What the child is told of it."""
        return MethodOrder(
            nonce=self._nonce,
            artifact_bytes=self._left,
            checkpoint_bytes=self._allowance.checkpoint_bytes,
            checkpoint_seconds=self._allowance.checkpoint_seconds,
        )

    def open(self, folder: Path) -> list[int]:
        """Descriptors of two empty files without names, for artifacts and for checkpoints, on the disk of a folder."""
        self._artifacts = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by close()
        self._checkpoints = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by close()
        return [self._artifacts.fileno(), self._checkpoints.fileno()]

    def given(self, body: bytes) -> Artifact:
        """Read a frame's body. Raises BrokenFrame, LimitExceeded."""
        said = Given.decode(body)
        self._number += 1
        if self._artifacts is None or said.number != self._number:
            raise BrokenFrame(f"artifact {said.number}, where {self._number} would be next")
        if said.kind not in FILES or said.files.keys() != FILES[said.kind][0]:
            raise BrokenFrame(f"an artifact of the kind {said.kind} of {sorted(said.files)}")
        if self._number > self._allowance.kept_artifacts:
            most = self._allowance.kept_artifacts
            raise LimitExceeded("The number of your artifacts", most, "artifacts", "limits.kept_artifacts", MAKE_ROOM)
        fd = self._artifacts.fileno()
        found = Artifact(said.number, artifact_id(self._nonce, said.number), said.kind, said.name, fd, said.files)
        self._left -= found.size
        if self._left < 0:
            most = self._allowance.kept_artifact_bytes
            raise LimitExceeded("What your artifacts hold", most, "bytes", "limits.kept_artifact_bytes", MAKE_ROOM)
        return found

    def kept(self, body: bytes) -> Checkpoint:
        """Read a frame's body. Raises BrokenFrame."""
        said = Kept.decode(body)
        if self._checkpoints is None or said.size > self._allowance.checkpoint_bytes + (8 << 20):
            raise BrokenFrame(f"a checkpoint of {said.size} bytes")
        return Checkpoint(said.step, said.size, said.sha256, self._checkpoints.fileno(), said.offset)

    def close(self) -> None:
        for file in (self._artifacts, self._checkpoints):
            if file is not None:
                file.close()
        self._artifacts = self._checkpoints = None
