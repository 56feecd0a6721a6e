"""The way of a method's artifacts and checkpoints: into files of the parent's, and frames that say where they lie."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from interlace.methods.shared.files import laid_out, packed
from interlace.protocol import frames
from interlace.protocol.artifact import ArtifactFile, content_hash
from interlace.protocol.errors import InvalidArtifact, LimitExceeded
from interlace.protocol.frames import FrameKind
from interlace.protocol.given import LONGEST, Given, Kept, Region, artifact_id
from interlace_workers.order import MethodOrder

#: A run spends at most one second in so many on its checkpoints.
_SHARE = 20
_LONGEST_STATE = 1 << 20  # bytes


class Outbox:
    """Lays files down for the parent, within what the order lets it."""

    def __init__(
        self,
        artifacts: int,
        checkpoints: int,
        events: int,
        order: MethodOrder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``artifacts``, ``checkpoints`` and ``events`` are descriptors, which stay open."""
        self._artifacts = artifacts
        self._checkpoints = checkpoints
        self._events = events
        self._order = order
        self._clock = clock
        self._number = 0
        #: Where the next artifact goes.
        self._end = 0
        #: When the next checkpoint may be kept.
        self._due = clock() + order.checkpoint_seconds
        self._slot = 0
        #: Whether the run has been asked to end, and has laid down where it stood.
        self._parted = False
        self.warnings: list[str] = []

    def artifact(self, kind: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], name: str) -> str:
        """Give an artifact; what names it. Raises InvalidArtifact, LimitExceeded."""
        files = laid_out(kind, tensors, config)
        size = sum(map(len, files.values()))
        if self._end + size > self._order.artifact_bytes:
            raise LimitExceeded(
                f"What the artifacts hold ({self._end + size:,} bytes)",
                self._order.artifact_bytes,
                "bytes",
                "limits.artifact_bytes` and `limits.kept_artifact_bytes",
            )
        places: dict[str, Region] = {}
        for file, data in files.items():
            _write(self._artifacts, data, self._end)
            places[file] = (self._end, len(data))
            self._end += len(data)
        self._number += 1
        self._say(FrameKind.ARTIFACT, Given(number=self._number, kind=kind, name=name, files=places).encode())
        described = tuple(
            ArtifactFile(name=file, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for file, data in files.items()
        )
        return f"artifact:{artifact_id(self._order.nonce, self._number)}@{content_hash(kind, described)}"

    def checkpoint(
        self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], *, parting: bool = False
    ) -> None:
        """Lay down where the run stands, if the last time is long enough ago; or once more, where it is ``parting``."""
        began = self._clock()
        at_once, self._parted = parting and not self._parted and self._due < math.inf, self._parted or parting
        if began < self._due and not at_once:
            return
        said = json.dumps(dict(state))
        if len(said) > _LONGEST_STATE:
            raise InvalidArtifact(
                f"A checkpoint's `state` has {len(said):,} bytes as JSON; at most {_LONGEST_STATE:,}."
            )
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if size > self._order.checkpoint_bytes:
            self._due = math.inf
            self.warnings.append(
                f"no checkpoint is kept: one has {size:,} bytes, over the limit of {self._order.checkpoint_bytes:,} "
                "(`methods.checkpoint_bytes`)"
            )
            return
        data = packed(tensors, {"step": str(step), "state": said})
        # The parent reads one place while the other is written: it has a period for it.
        offset = self._slot * (self._order.checkpoint_bytes + (8 << 20))
        _write(self._checkpoints, data, offset)
        digest = hashlib.sha256(data).hexdigest()
        self._say(FrameKind.CHECKPOINT, Kept(step=step, offset=offset, size=len(data), sha256=digest).encode())
        self._slot = 1 - self._slot
        now = self._clock()
        self._due = now + max(self._order.checkpoint_seconds, _SHARE * (now - began))

    def _say(self, kind: FrameKind, body: bytes) -> None:
        assert len(body) <= LONGEST
        os.write(self._events, frames.encode(kind, body))  # shorter than what a pipe takes whole


def _write(fd: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written
