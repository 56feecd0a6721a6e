"""What is told of a job in one line: of all that was said of why it failed, what was raised."""

import pytest

from interlace.protocol.job import JobState
from interlace.protocol.jobs import JobView

FRAMES = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    x = y\n        ^\n'


def reason(text: str, state: JobState = JobState.ERROR) -> str:
    return JobView(id="a", tenant="t", model="m", slug="m", state=state, text=text, submitted=0.0).reason


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (FRAMES + "ValueError: no\n\n`model` has no such module.", "ValueError: no"),
        (FRAMES + "KeyError: 1\n\nDuring it, another:\n\n" + FRAMES + "a.Wrong: two\nlines", "a.Wrong: two"),
        ("It is over the limit of 3.\nMore of it.", "It is over the limit of 3."),
        (FRAMES, "^"),
        ("\n \n", ""),
        ("x" * 200, "x" * 159 + "…"),
    ],
)
def test_the_reason_is_what_was_raised(text: str, line: str) -> None:
    assert reason(text) == line


def test_only_what_failed_or_was_cancelled_has_a_reason() -> None:
    assert reason("Its client has left.", JobState.CANCELLED) == "Its client has left."
    assert {reason("Fine.", state) for state in (JobState.QUEUED, JobState.RUNNING, JobState.COMPLETED)} == {""}
