"""The parent's end of values that stream: what a child may claim, and what is done about it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlace.protocol.errors import LimitExceeded
from interlace.protocol.frames import BrokenFrame, Value
from interlace.protocol.job import Limits
from interlace_workers.executors.values import Inlet, Streamed

LIMITS = Limits(result_bytes=100, streamed_values=3)


class Child:
    """A child's end of an inlet."""

    def __init__(self, inlet: Inlet, folder: Path) -> None:
        self.inlet = inlet
        self.fd = os.dup(inlet.open(folder))

    def write(self, data: bytes) -> None:
        os.write(self.fd, data)

    def say(self, name: str = "x", offset: int = 0, size: int = 0, step: int | None = None) -> Streamed:
        return self.inlet.take(Value(name, step, offset, size).encode())


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    inlet = Inlet(LIMITS)
    child = Child(inlet, tmp_path)
    yield child
    os.close(child.fd)
    inlet.close()


def test_values_are_read_where_they_lie(child: Child, tmp_path: Path) -> None:
    child.write(b"onetwothree")
    one, three = child.say("one", 0, 3), child.say("three", 6, 5, step=2)
    assert (one.number, one.name, one.step, one.size, one.read()) == (1, "one", None, 3, b"one")
    three.copy(tmp_path / "copied")
    assert (three.number, three.step, (tmp_path / "copied").read_bytes()) == (2, 2, b"three")


def test_the_file_has_no_name_and_goes_with_the_job(child: Child, tmp_path: Path) -> None:
    child.write(b"something")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 12), (11, 1), (12, 0), (2**63, 0), (2**64 - 1, 2**64 - 1), (1, 2**64 - 1)]
)
def test_nothing_lies_behind_the_end(child: Child, offset: int, size: int) -> None:
    child.write(b"onetwothree")
    with pytest.raises(BrokenFrame):
        child.say("x", offset, size)


def test_bytes_count_even_where_they_are_the_same(child: Child) -> None:
    child.write(b"x" * 60)
    child.say("x", 0, 60)
    with pytest.raises(LimitExceeded, match=r"100 bytes.*limits.result_bytes"):
        child.say("x", 0, 60)


def test_their_number_is_bounded(child: Child) -> None:
    for _ in range(3):
        child.say()
    with pytest.raises(LimitExceeded, match=r"3 values.*limits.streamed_values"):
        child.say()


def test_a_file_that_is_cut_is_found_out(child: Child, tmp_path: Path) -> None:
    child.write(b"onetwothree")
    value = child.say("x", 3, 8)
    os.ftruncate(child.fd, 5)
    with pytest.raises(BrokenFrame):
        value.read()
    with pytest.raises(BrokenFrame):
        value.copy(tmp_path / "copied")


@pytest.mark.parametrize("body", [b"", b"short", b"\0" * 20, b"\0" * 20 + b"\xff", b"\xff\xff\xff\xf0" + b"\0" * 17])
def test_what_is_no_value(child: Child, body: bytes) -> None:
    with pytest.raises(BrokenFrame):
        child.inlet.take(body)
