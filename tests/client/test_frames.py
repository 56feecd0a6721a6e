"""Frames from a sandbox: bounded, typed, and never trusted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.protocol import frames
from interlace.protocol.frames import LONGEST_BODY, BrokenFrame, Frame, FrameKind, FrameReader

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
