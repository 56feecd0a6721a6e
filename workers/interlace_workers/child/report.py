"""What a method may say while it runs in a job."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch

from interlace.methods.base import ArtifactName, Checkpoint, Opened, Report, Texts
from interlace.protocol.errors import InvalidArtifact
from interlace.protocol.event import LONGEST_TITLE, Shown
from interlace_workers.child import progress
from interlace_workers.child.given import Outbox
from interlace_workers.child.opened import opened, read
from interlace_workers.order import Adapter

_MOST_HASHED = 200


class JobReport(Report):
    """The report of a run in a job."""

    def __init__(self, seed: int, outbox: Outbox, sealed: Sequence[tuple[Adapter, int]]) -> None:
        """``sealed``: what the job may open or go on from, with descriptors, which are closed when they are read."""
        self.seed = seed
        self.forwards = self.backwards = self.tokens = 0
        #: What was read -> SHA-256.
        self.data: dict[str, str] = {}
        self._outbox = outbox
        self._inputs = {adapter.name: (adapter, fd) for adapter, fd in sealed if adapter.use == "input"}
        #: What has been read, whose descriptor is closed.
        self._opened: dict[str, Opened] = {}
        self._former = next(((adapter, fd) for adapter, fd in sealed if adapter.use == "checkpoint"), None)
        self._stopping = False

    @property
    def stopping(self) -> bool:
        return self._stopping

    def stop(self) -> None:
        """Somebody has cancelled."""
        self._stopping = True

    def progress(self, step: int, of: int | None = None, **metrics: float) -> None:
        progress.tell(step, of, **metrics)

    def picture(self, pixels: torch.Tensor, title: str = "", step: int | None = None) -> None:
        # Only here, for it needs Pillow, which a worker of language models may not have.
        png = import_module("interlace.methods.shared.preview").preview(pixels)
        progress.show(Shown(title=title[:LONGEST_TITLE], step=step), png)

    def count(self, *, forwards: int = 0, backwards: int = 0, tokens: int = 0) -> None:
        self.forwards += forwards
        self.backwards += backwards
        self.tokens += tokens

    def open(self, name: ArtifactName, kind: str | None = None) -> Opened:
        if name not in self._opened:
            if name not in self._inputs:
                known = ", ".join(self._inputs) or "none"
                raise InvalidArtifact(f"The job has no artifact {name[:96]}; its parameters name: {known}.")
            self._opened[name] = opened(*self._inputs[name])
        found = self._opened[name]
        if kind not in (None, found.kind):
            raise InvalidArtifact(f"{name[:96]} is of the kind {found.kind}; expected {kind}.")
        return found

    def texts(self, texts: Texts) -> list[str]:
        given = texts if isinstance(texts, list) else list(self.open(texts, "texts").config["texts"])
        if len(self.data) < _MOST_HASHED:
            digest = hashlib.sha256(json.dumps(given).encode()).hexdigest()
            self.data[texts if isinstance(texts, str) else f"texts:{digest[:8]}"] = digest
        return given

    def artifact(
        self, kind: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], *, name: str = ""
    ) -> ArtifactName:
        return self._outbox.artifact(kind, tensors, config, name)

    def checkpoint(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        self._outbox.checkpoint(step, tensors, state, parting=self._stopping)

    def resumed(self) -> Checkpoint | None:
        if self._former is None:
            return None
        _, header, tensors = read(*self._former)
        self._former = None
        said = header.metadata
        return Checkpoint(int(said["step"]), tensors, json.loads(said["state"]))

    def close(self) -> None:
        """Let go of what nobody has read."""
        for name, (_, fd) in self._inputs.items():
            if name not in self._opened:
                os.close(fd)
        if self._former is not None:
            os.close(self._former[1])
            self._former = None

    @property
    def warnings(self) -> list[str]:
        """What the frame has to say of the run."""
        return self._outbox.warnings
