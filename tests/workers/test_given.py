"""What a method's child gives, at the parent's end: true places, bounds that hold, bytes that are what they say."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from interlace.protocol import frames
from interlace.protocol.errors import InvalidArtifact, LimitExceeded
from interlace.protocol.frames import BrokenFrame, FrameKind
from interlace.protocol.given import LONGEST, Given, Kept, artifact_id
from interlace.protocol.method import Allowance
from interlace.protocol.safetensors import read_header
from interlace_workers.child import given as child
from interlace_workers.executors.given import Outbox

ALLOWANCE = Allowance(
    artifact_bytes=4096,
    kept_artifact_bytes=6000,
    kept_artifacts=3,
    checkpoint_bytes=4096,
    checkpoint_seconds=10.0,
    cancel_grace=1.0,
)


class Ends:
    """Both ends of a run's outbox."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.parent = Outbox(ALLOWANCE)
        self._read, self._write = os.pipe()
        self.files = self.parent.open(folder)
        order = self.parent.order
        self.child = child.Outbox(self.files[0], self.files[1], self._write, order, clock=lambda: self.now)
        self._reader = frames.FrameReader()

    def said(self) -> list[frames.Frame]:
        os.set_blocking(self._read, False)
        try:
            return list(self._reader.feed(os.read(self._read, 1 << 16)))
        except BlockingIOError:
            return []

    def close(self) -> None:
        self.parent.close()
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    ends = Ends(tmp_path)
    yield ends
    ends.close()


def test_an_artifact_on_its_way(ends: Ends, tmp_path: Path) -> None:
    ref = ends.child.artifact("sae", {"W": torch.ones(3, 2).T}, {"d_in": 2}, "mine")
    (frame,) = ends.said()
    assert frame.kind is FrameKind.ARTIFACT
    found = ends.parent.given(frame.body)
    assert (found.number, found.kind, found.name) == (1, "sae", "mine")
    assert ref.startswith(f"artifact:{found.id}@")
    for name in found.files:
        found.copy(name, tmp_path / name)
    assert (tmp_path / "cfg.json").read_bytes() == b'{\n "d_in": 2\n}'
    with (tmp_path / "sae_weights.safetensors").open("rb") as file:
        header = read_header(file, (tmp_path / "sae_weights.safetensors").stat().st_size, "x")
    assert header.tensors["W"].shape == (2, 3)
    other = Outbox(ALLOWANCE)
    assert artifact_id(other.order.nonce, 1) != found.id


def test_a_checkpoint_on_its_way(ends: Ends, tmp_path: Path) -> None:
    steps = []
    for step in range(1, 40):
        ends.now = float(step)
        ends.child.checkpoint(step, {"w": torch.full((4,), float(step))}, {"step": step})
        for frame in ends.said():
            found = ends.parent.kept(frame.body)
            assert found.copy(tmp_path / "state")
            steps.append(found.step)
    assert steps == [10, 20, 30]
    ends.now = 50.0
    ends.child.checkpoint(50, {"w": torch.zeros(4)}, {})
    (frame,) = ends.said()
    os.pwrite(ends.files[1], b"!", ends.parent.kept(frame.body).offset + 20)  # it is written over before it is read
    assert not ends.parent.kept(frame.body).copy(tmp_path / "state")
    ends.now = 55.0
    for step in (51, 52):  # somebody has cancelled: the first is kept at once, and no other
        ends.child.checkpoint(step, {"w": torch.zeros(4)}, {}, parting=True)
    assert [ends.parent.kept(frame.body).step for frame in ends.said()] == [51]
    ends.now = 100.0
    ends.child.checkpoint(53, {"w": torch.zeros(4096)}, {})
    assert ends.said() == []
    assert "methods.checkpoint_bytes" in ends.child.warnings[0]


def test_what_a_child_of_ours_refuses(ends: Ends) -> None:
    with pytest.raises(InvalidArtifact, match="no kind of artifact 'cake'"):
        ends.child.artifact("cake", {}, {}, "")
    with pytest.raises(InvalidArtifact, match="has no tensors"):
        ends.child.artifact("texts", {"x": torch.ones(1)}, {"texts": []}, "")
    with pytest.raises(LimitExceeded, match=r"limits\.kept_artifact_bytes"):
        ends.child.artifact("data", {"x": torch.ones(4096)}, {}, "")


FILES = {"data.safetensors": (0, 8), "data.json": (8, 2)}


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 2},
        {"number": 0},
        {"kind": "cake"},
        {"kind": "peft"},
        {"files": {}},
        {"files": {"../data.json": (0, 1)}},
        {"files": FILES | {"more": (0, 1)}},
        {"files": FILES | {"data.json": (-1, 2)}},
        {"name": "x" * 200},
        {"name": "a\nb"},
        {"more": 1},
    ],
)
def test_a_forged_word_of_an_artifact(ends: Ends, changes: dict[str, Any]) -> None:
    said = {"number": 1, "kind": "data", "name": "", "files": FILES} | changes
    with pytest.raises(BrokenFrame):
        ends.parent.given(json.dumps(said).encode())


def test_bounds_hold_whatever_is_said(ends: Ends, tmp_path: Path) -> None:
    for body in (b"", b"{", b"[]", b" " * (LONGEST + 1)):
        with pytest.raises(BrokenFrame):
            ends.parent.given(body)
        with pytest.raises(BrokenFrame):
            ends.parent.kept(body)


def test_more_than_a_tenant_may_keep(ends: Ends, tmp_path: Path) -> None:
    behind = Given(number=1, kind="data", name="", files=FILES)
    with pytest.raises(BrokenFrame, match="was cut"):  # there is nothing in the file
        ends.parent.given(behind.encode()).copy("data.json", tmp_path / "x")
    large = {"data.safetensors": (0, 6000), "data.json": (0, 2)}
    with pytest.raises(LimitExceeded, match=r"limits\.kept_artifact_bytes.*`interlace artifacts delete`"):
        ends.parent.given(Given(number=2, kind="data", name="", files=large).encode())
    digest = hashlib.sha256(b"").hexdigest()
    with pytest.raises(BrokenFrame, match="a checkpoint of"):
        ends.parent.kept(Kept(step=1, offset=0, size=1 << 30, sha256=digest).encode())


def test_more_artifacts_than_a_tenant_may_keep(ends: Ends) -> None:
    for number in range(1, 4):
        ends.parent.given(Given(number=number, kind="data", name="", files=FILES).encode())
    with pytest.raises(LimitExceeded, match=r"limits\.kept_artifacts"):
        ends.parent.given(Given(number=4, kind="data", name="", files=FILES).encode())
