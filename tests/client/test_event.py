"""Events are one tagged union, and read back as they were written."""

import pytest
from pydantic import ValidationError

from interlace.protocol import event as words
from interlace.protocol.event import Ended, Event, Log, Saved, StateChanged
from interlace.protocol.job import Cost, JobState, ResultRef


@pytest.mark.parametrize(
    "event",
    [
        StateChanged(state=JobState.QUEUED, text="Added to the queue.", model_ready=False),
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
