"""Memory for weights is taken as soon as the model is known, by a thread that is gone when it is asked for."""

import json
import mmap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from socket import socket

import pytest

from interlace_workers import channel
from interlace_workers.order import Load
from interlace_workers.reserve import Reserve, allocate, populate

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
SIZE, LARGE = 80 << 20, 1 << 30  # bytes: some pieces, the last one shorter; and many


@pytest.fixture
def ends() -> Iterator[tuple[socket, socket]]:
    ours, theirs = channel.pair()
    with ours, theirs:
        yield ours, theirs


def test_it_hears_what_to_load_and_has_memory_for_it(ends: tuple[socket, socket]) -> None:
    ours, theirs = ends
    before = _resident_bytes()
    reserve = Reserve(theirs)
    channel.send(ours, {"load": asdict(_load(SIZE))})
    assert reserve.load() == _load(SIZE)
    reserve.join()  # it has not been asked for, and takes all
    assert _resident_bytes() - before >= SIZE
    arena = reserve.end()
    assert arena is not None
    assert len(arena) >= SIZE
    assert not any(arena[:: mmap.PAGESIZE])


def test_what_is_asked_for_is_given_as_it_is(ends: tuple[socket, socket]) -> None:
    ours, theirs = ends
    reserve = Reserve(theirs)
    before = _resident_bytes()
    with ThreadPoolExecutor(1) as other:
        asked = other.submit(reserve.end)
        channel.send(ours, {"load": asdict(_load(LARGE))})
        arena = asked.result()
    assert arena is not None
    assert len(arena) >= LARGE
    assert _resident_bytes() - before < LARGE
    assert reserve not in threading.enumerate()
    arena.close()


def test_what_the_kernel_refuses_is_left_to_the_loading(ends: tuple[socket, socket]) -> None:
    ours, theirs = ends
    reserve = Reserve(theirs)
    channel.send(ours, {"load": asdict(_load(1 << 60))})  # more than any machine has
    assert reserve.load() == _load(1 << 60)
    assert reserve.end() is None


def test_without_a_size_nothing_is_taken_and_without_a_parent_nothing_is_heard(ends: tuple[socket, socket]) -> None:
    ours, theirs = ends
    reserve = Reserve(theirs)
    channel.send(ours, {"load": asdict(_load(0))})
    assert reserve.load() == _load(0)
    assert reserve.end() is None
    orphan = Reserve(theirs)
    ours.close()
    assert orphan.load() is None
    assert orphan.end() is None


def test_all_pages_are_there_before_they_are_written_to() -> None:
    with allocate(SIZE + mmap.PAGESIZE) as arena:
        before = _resident_bytes()
        populate(arena)
        assert _resident_bytes() - before >= SIZE
        assert not any(arena[:: mmap.PAGESIZE])


def _load(size_bytes: int) -> Load:
    text = json.dumps(asdict(Load("/m", None, "float32", trust_remote_code=False, threads=1, size_bytes=size_bytes)))
    return Load(**json.loads(text))  # as it comes out of a channel


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
