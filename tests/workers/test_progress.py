"""A job's progress: how often a child tells and shows of it, and how much of that its parent believes."""

import os
import struct
import threading
import zlib
from collections.abc import Iterator

import pytest
import torch

from interlace.methods.shared.images import png
from interlace.methods.shared.preview import preview
from interlace.protocol.event import Picture, Progress, Shown
from interlace.protocol.frames import BrokenFrame, FrameKind, FrameReader
from interlace.protocol.picture import LONGEST_PICTURE, check_picture
from interlace_workers.child import progress
from interlace_workers.child.loading.pipeline import _Steps
from interlace_workers.executors.pace import Gallery, Told


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


def test_last_words_without_end_are_told_a_hundred_times_a_second(parent: Parent) -> None:
    for _ in range(1000):
        progress.tell(1, 1)
        parent.clock.now += 0.001
    assert 90 <= len(parent.told()) <= 110


def test_slow_steps_are_all_told(parent: Parent) -> None:
    for _ in _Steps(range(3)):
        parent.clock.now += 9
    assert parent.told() == [(1, 3), (2, 3), (3, 3)]


def test_steps_of_a_tensor_and_whatever_tqdm_takes(parent: Parent) -> None:
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
    pace = Told(clock)
    passed = 0
    for _ in range(100):
        passed += sum(pace.take(word()) is not None for _ in range(1000))
        clock.now += 0.1
    assert 8 + 2 * 9 <= passed <= 8 + 2 * 10


def test_a_day_of_it_is_no_flood() -> None:
    clock = Clock()
    pace = Told(clock)
    passed = 0
    for _ in range(24 * 3600):
        passed += pace.take(word()) is not None
        clock.now += 1
    assert 1000 < passed < 5000


def test_what_was_dropped_is_not_missed() -> None:
    clock = Clock()
    pace = Told(clock)
    for step in range(50):
        pace.take(word(step))
    clock.now += 0.5
    assert pace.take(word(50)) == Progress(step=50, of=9)


def test_nonsense_is_not_believed() -> None:
    with pytest.raises(BrokenFrame, match="no word of progress"):
        Told(Clock()).take(b"nonsense")


# pictures


def pixels(n: int, side: int, *, noise: bool = True) -> torch.Tensor:
    dice = torch.Generator().manual_seed(n)
    shape = (n, side, side, 3)
    return torch.randint(256, shape, generator=dice, dtype=torch.uint8) if noise else torch.zeros(*shape).byte()


@pytest.mark.parametrize("asked", [pixels(1, 2), pixels(3, 32), pixels(40, 32), pixels(8, 512), pixels(1, 1500)])
def test_what_a_method_shows_fits(asked: torch.Tensor) -> None:
    data = preview(asked)
    check_picture(data)
    assert len(data) > 100


def test_a_picture_comes_through_a_pipe_that_is_full() -> None:
    """The largest that may be is longer than what a pipe takes whole."""
    data = png(pixels(1, 146)[0])
    assert LONGEST_PICTURE - 2000 < len(data) <= LONGEST_PICTURE
    read_end, write_end = os.pipe()

    def shown() -> None:
        with progress.telling(write_end):
            progress.show(Shown(title="by now", step=7), data)
        os.close(write_end)

    child = threading.Thread(target=shown)
    child.start()
    with open(read_end, "rb") as file:
        (frame,) = FrameReader().feed(file.read())
    child.join()
    assert frame.kind is FrameKind.PICTURE
    assert Gallery(Clock()).take(frame.body) == Picture(number=1, title="by now", step=7, size=len(data), data=data)


def test_pictures_are_fewer_the_longer_a_job_runs() -> None:
    clock = Clock()
    gallery, body = Gallery(clock), Shown().encode(png(pixels(1, 4)[0]))
    passed = [sum(gallery.take(body) is not None for _ in range(100))]
    for _ in range(24 * 3600):
        passed.append(int(gallery.take(body) is not None))
        clock.now += 1
    assert passed[0] == 8
    assert 60 < sum(passed) < 120
    assert sum(passed[-7200:]) == 1
    clock.now += 9000
    last = gallery.take(body)
    assert last is not None
    assert last.number == sum(passed) + 1


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + kind + body + struct.pack("!I", zlib.crc32(kind + body))


WHOLE = png(pixels(1, 4)[0])
START, END = WHOLE[:33], WHOLE[-12:]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no PNG"),
        (b"<svg onload=alert(1)>", "no PNG"),
        (png(pixels(1, 160)[0]), "at most 65,536"),
        (WHOLE[:-1], "cut off"),
        (WHOLE[:40] + b"\x00" + WHOLE[41:], "damaged"),
        (WHOLE + b"<script>", "cut off"),
        (START + chunk(b"tEXt", b"a\x00b") + WHOLE[33:], "other chunks"),
        (START + END, "other chunks"),
        (WHOLE[33:], "no PNG"),
        (WHOLE[:8] + WHOLE[33:], "does not begin with its size"),
        (WHOLE[:8] + chunk(b"IHDR", struct.pack("!IIBBBBB", 1 << 20, 4, 8, 2, 0, 0, 0)) + WHOLE[33:], "1048576 x 4"),
        (WHOLE[:8] + chunk(b"IHDR", struct.pack("!IIBBBBB", 4, 4, 8, 3, 0, 0, 0)) + WHOLE[33:], "expected 8-bit RGB"),
    ],
)
def test_what_is_no_picture(data: bytes, why: str) -> None:
    with pytest.raises(BrokenFrame, match=why):
        Gallery(Clock()).take(Shown().encode(data))


@pytest.mark.parametrize("head", [b"", b'{"title": 3}', b'{"step": -1}', b'{"title": "' + b"x" * 5000 + b'"}'])
def test_what_is_no_head_of_a_picture(head: bytes) -> None:
    with pytest.raises(BrokenFrame, match="no picture"):
        Gallery(Clock()).take(head + b"\n" + WHOLE)
