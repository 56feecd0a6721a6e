"""Frames from a sandbox: bounded, typed, and never trusted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.protocol import frames
from interlace.protocol.frames import LONGEST_BODY, LONGEST_NAME, BrokenFrame, Frame, FrameKind, FrameReader, Value

FRAMES = st.lists(st.builds(Frame, st.sampled_from(FrameKind), st.binary(max_size=300)), max_size=6)


@given(FRAMES, st.integers(1, 64))
def test_frames_survive_any_chunking(sent: list[Frame], size: int) -> None:
    stream = b"".join(frames.encode(*frame) for frame in sent)
    reader = FrameReader()
    got = [frame for start in range(0, len(stream), size) for frame in reader.feed(stream[start : start + size])]
    assert got == sent


@given(st.binary(max_size=2000))
def test_any_bytes_give_frames_or_are_refused(data: bytes) -> None:
    try:
        for frame in FrameReader().feed(data):
            assert len(frame.body) <= LONGEST_BODY
    except BrokenFrame:
        return


def test_a_body_over_the_bound_is_cut() -> None:
    (frame,) = FrameReader().feed(frames.encode(FrameKind.FAILED, b"x" * (LONGEST_BODY + 1)))
    assert len(frame.body) <= LONGEST_BODY
    assert frame.body.endswith(b"(cut)")


@pytest.mark.parametrize("data", [b"\x00\x00\x00\x00\x00", b"\x09\x00\x00\x00\x01a", b"\x01\xff\xff\xff\xff"])
def test_unknown_kinds_and_lengths_are_refused(data: bytes) -> None:
    with pytest.raises(BrokenFrame):
        list(FrameReader().feed(data))


NAMES = st.text(min_size=1, max_size=64).filter(lambda name: not any("\ud800" <= one <= "\udfff" for one in name))
SIZES = st.integers(0, 2**64 - 1)


@given(NAMES, st.none() | st.integers(0, 2**31 - 1), SIZES, SIZES)
def test_a_value_survives(name: str, step: int | None, offset: int, size: int) -> None:
    value = Value(name, step, offset, size)
    assert Value.decode(value.encode()) == value


@given(st.binary(max_size=400))
def test_any_bytes_are_a_bounded_value_or_refused(body: bytes) -> None:
    try:
        value = Value.decode(body)
    except BrokenFrame:
        return
    assert 0 < len(value.name.encode()) <= LONGEST_NAME
    assert value.step is None or value.step >= 0
    assert value.offset >= 0
    assert value.size >= 0


@pytest.mark.parametrize("name", ["", "x" * (LONGEST_NAME + 1), "ü" * LONGEST_NAME, "\ud800"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=r"256 bytes|surrogates"):
        Value(name, None, 0, 0).encode()
