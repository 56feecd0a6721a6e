"""Events are one tagged union, and read back as they were written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from interlace.protocol import event as words
from interlace.protocol.event import LONGEST_PROGRESS, Ended, Event, Log, Picture, Progress, Saved, StateChanged
from interlace.protocol.job import Cost, JobState, ResultRef

NAMES = st.from_regex(r"[A-Za-z0-9_.:/ -]{1,48}", fullmatch=True)
STEPS = st.integers(0, 2**53)


@pytest.mark.parametrize(
    "event",
    [
        StateChanged(state=JobState.QUEUED, text="Added to the queue.", model_ready=False),
        Progress(step=3, of=20),
        Progress(step=0, metrics={"loss": 0.25, "learning rate": None}),
        Picture(number=1, title="the style by now", step=3, size=3, data=b"\x89PN"),
        Log(text="layer 3 \N{SNOWMAN}\x00"),
        Saved(number=1, name="x", size=256, data=bytes(range(256))),
        Saved(number=2, name="layer 3 \N{SNOWMAN}", step=0, size=1 << 40),
        Ended(state=JobState.COMPLETED, result=ResultRef(size=3), cost=Cost(runtime=0.5)),
        Ended(state=JobState.ERROR, text="ValueError: boom"),
    ],
)
def test_round_trip(event: Event) -> None:
    assert words.decode(words.encode(event)) == event


@pytest.mark.parametrize("data", [b"{}", b'{"type": "unknown"}', b'{"type": "ended", "state": "running"}', b"nonsense"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValidationError):
        words.decode(data)


def test_the_ends_are_the_ends() -> None:
    assert [state for state in JobState if state.ended] == [JobState.COMPLETED, JobState.ERROR, JobState.CANCELLED]


@pytest.mark.parametrize(
    ("progress", "sentence"),
    [
        (Progress(step=3, of=20), "Step 3 of 20"),
        (Progress(step=3), "Step 3"),
        (Progress(step=3, of=9, metrics={"loss": 0.123456, "x": None}), "Step 3 of 9, loss 0.1235, x not a number"),
    ],
)
def test_progress_in_words(progress: Progress, sentence: str) -> None:
    assert progress.sentence == sentence


def test_a_measure_that_is_no_number_is_told_as_none() -> None:
    told = Progress(step=1, metrics={"loss": float("nan"), "norm": float("inf"), "x": 1.5})
    assert Progress.decode(told.encode()).metrics == {"loss": None, "norm": None, "x": 1.5}


@given(STEPS, st.none() | STEPS, st.dictionaries(NAMES, st.floats(-1e300, 1e300), max_size=9))
def test_a_word_of_progress_survives(step: int, of: int | None, metrics: dict[str, float | None]) -> None:
    progress = Progress(step=step, of=of, metrics=metrics)
    assert Progress.decode(progress.encode()) == progress


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"step": -1}',
        b'{"step": "1"}',
        b'{"step": 1.5}',
        b'{"step": true}',
        b'{"step": 9007199254740993}',
        b'{"step": 1, "of": -1}',
        b'{"step": 1, "metrics": {"loss": "x"}}',
        b'{"step": 1, "metrics": {"": 1}}',
        b'{"step": 1, "metrics": {"a\\u001b[31m": 1}}',
        b'{"step": 1, "metrics": {"%s": 1}}' % (b"n" * 49),
        b'{"step": 1, "metrics": {%s}}' % b", ".join(b'"%d": 1' % number for number in range(17)),
        b'{"step": 1%s}' % (b" " * LONGEST_PROGRESS),
        b"[" * LONGEST_PROGRESS,
    ],
)
def test_what_is_no_word_of_progress(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"(?i)progress"):
        Progress.decode(body)


def test_the_longest_word_of_progress_is_read() -> None:
    metrics: dict[str, float | None] = {"n" * 46 + f"{number:02}": -2.2250738585072014e-308 for number in range(16)}
    progress = Progress(step=2**53, of=2**53, metrics=metrics)
    assert Progress.decode(progress.encode()) == progress
