"""How far a job is, and what it shows, told to the parent while it runs."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from interlace.protocol import frames
from interlace.protocol.event import Progress, Shown
from interlace.protocol.frames import FrameKind

_PERIOD = 0.5  # seconds between two words of it, but for the last
_LAST_PERIOD = 0.01  # seconds between two last words; a parent that is told a thousand a second ends the job


class _Teller:
    """Writes to the parent, not more often than anybody would read it."""

    def __init__(self, events: int, clock: Callable[[], float]) -> None:
        self._events = events
        self._clock = clock
        self._told_at = self._ended_at = -_PERIOD

    def tell(self, step: int, of: int | None, metrics: Mapping[str, float]) -> None:
        now = self._clock()
        if now - self._told_at < _PERIOD and (step != of or now - self._ended_at < _LAST_PERIOD):
            return
        self._told_at = now
        if step == of:
            self._ended_at = now
        with suppress(ValueError, OSError):  # what cannot be told is no reason to fail
            body = Progress(step=step, of=of, metrics=dict(metrics)).encode()
            os.write(self._events, frames.encode(FrameKind.PROGRESS, body))  # shorter than what a pipe takes whole

    def show(self, shown: Shown, png: bytes) -> None:
        with suppress(OSError):
            rest = memoryview(frames.encode(FrameKind.PICTURE, shown.encode(png)))
            while rest:  # longer than what a pipe takes whole
                rest = rest[os.write(self._events, rest) :]


_teller: _Teller | None = None


@contextmanager
def telling(events: int, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Tell through this descriptor while the block runs."""
    global _teller
    _teller = _Teller(events, clock)
    try:
        yield
    finally:
        _teller = None


def tell(step: int, of: int | None = None, **metrics: float) -> None:
    """Say that so many steps are done, of how many. Outside of `telling`, as in a rehearsal, nothing is told."""
    if _teller is not None:
        _teller.tell(step, of, metrics)


def show(shown: Shown, png: bytes) -> None:
    """Show a picture that `protocol.picture.check_picture` lets through, as `tell`."""
    if _teller is not None:
        _teller.show(shown, png)
