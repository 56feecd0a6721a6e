"""The parent's end of a job's progress: what a child says of it, checked, and not more often than it is worth."""

import time
from collections.abc import Callable

from interlace.protocol.event import Progress
from interlace.protocol.frames import BrokenFrame

_PERIOD = 0.5  # seconds for each word, in the long run
_BURST = 8  # words that may come at once
#: Of a job's time so far, what it must be silent for each word: a day's job has 4,000 of them.
_SILENCE = 0.002


class Pace:
    """Lets a child's words of progress through at a bounded rate, and drops the others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = self._counted_at = clock()
        self._left = float(_BURST)

    def take(self, body: bytes) -> Progress | None:
        """Read a frame's body; None, unread, for one that came too soon. Raises BrokenFrame."""
        now = self._clock()
        period = max(_PERIOD, _SILENCE * (now - self._started))
        self._left = min(_BURST, self._left + (now - self._counted_at) / period)
        self._counted_at = now
        if self._left < 1:
            return None
        self._left -= 1
        try:
            return Progress.decode(body)
        except ValueError as error:
            raise BrokenFrame(f"no word of progress: {error}") from None
