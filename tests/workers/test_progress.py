"""A job's progress: how often a child tells of it, and how much of what a child says its parent believes."""

import os
from collections.abc import Iterator

import pytest

from interlace.protocol.event import Progress
from interlace.protocol.frames import BrokenFrame, FrameKind, FrameReader
from interlace_workers.child import progress
from interlace_workers.child.pipeline import _Steps
from interlace_workers.executors.pace import Pace


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Parent:
    """The parent's end of a child's frames."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self.telling = progress.telling(self._write_end, self.clock)

    def told(self) -> list[tuple[int, int | None]]:
        """What has been told since this was asked last."""
        try:
            data = os.read(self._read_end, 1 << 16)
        except BlockingIOError:
            return []
        frames = list(FrameReader().feed(data))
        assert {frame.kind for frame in frames} == {FrameKind.PROGRESS}
        return [(word.step, word.of) for word in (Progress.decode(frame.body) for frame in frames)]

    def close(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)


@pytest.fixture
def parent() -> Iterator[Parent]:
    parent = Parent()
    with parent.telling:
        yield parent
    parent.close()


def test_the_first_the_last_and_few_between(parent: Parent) -> None:
    with _Steps(total=100) as bar:
        for _ in range(100):
            bar.update()
            parent.clock.now += 0.1
    told = parent.told()
    assert (told[0], told[-1]) == ((1, 100), (100, 100))
    assert [step for step, _ in told] == [*range(1, 100, 5), 100]


def test_slow_steps_are_all_told(parent: Parent) -> None:
    for _ in _Steps(range(3)):
        parent.clock.now += 9
    assert parent.told() == [(1, 3), (2, 3), (3, 3)]


def test_steps_of_a_tensor_and_whatever_tqdm_takes(parent: Parent) -> None:
    import torch

    bar = _Steps(torch.arange(2))
    assert [int(step) for step in bar] == [0, 1]
    bar.set_postfix(loss=1.0)
    bar.set_description("x")
    bar.close()
    assert parent.told()[-1] == (2, 2)


def test_what_cannot_be_told_is_no_failure(parent: Parent) -> None:
    progress.tell(-1, 3)
    progress.tell(1, 3, **{"\x1b": 1.0})
    assert parent.told() == []


def test_nothing_is_told_outside_of_a_job() -> None:
    parent = Parent()
    progress.tell(1, 3)
    with parent.telling:
        progress.tell(2, 3)
    progress.tell(3, 3)
    assert parent.told() == [(2, 3)]
    parent.close()


# the parent


def word(step: int = 1) -> bytes:
    return Progress(step=step, of=9).encode()


def test_a_flood_is_thinned() -> None:
    clock = Clock()
    pace = Pace(clock)
    passed = 0
    for _ in range(100):
        passed += sum(pace.take(word()) is not None for _ in range(1000))
        clock.now += 0.1
    assert 8 + 2 * 9 <= passed <= 8 + 2 * 10


def test_a_day_of_it_is_no_flood() -> None:
    clock = Clock()
    pace = Pace(clock)
    passed = 0
    for _ in range(24 * 3600):
        passed += pace.take(word()) is not None
        clock.now += 1
    assert 1000 < passed < 5000


def test_what_was_dropped_is_not_missed() -> None:
    clock = Clock()
    pace = Pace(clock)
    for step in range(50):
        pace.take(word(step))
    clock.now += 0.5
    assert pace.take(word(50)) == Progress(step=50, of=9)


def test_nonsense_is_not_believed() -> None:
    with pytest.raises(BrokenFrame, match="no word of progress"):
        Pace(Clock()).take(b"nonsense")
