"""The parent's end of a job's progress: what a child says and shows of it, checked, and no oftener than it is worth."""

import time
from collections.abc import Callable

from interlace.protocol.event import Picture, Progress, Shown
from interlace.protocol.frames import BrokenFrame


class Pace:
    """Lets what a child says through at a bounded rate: one every so often, and fewer the longer the job runs."""

    def __init__(self, period: float, burst: int, silence: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``period``: seconds for each, in the long run; ``burst``: how many may come at once; ``silence``: what share
        of the job's time so far there must be for each, if that is more."""
        self._period, self._burst, self._silence = period, burst, silence
        self._clock = clock
        self._started = self._counted_at = clock()
        self._left = float(burst)

    def lets_through(self) -> bool:
        """Whether one that comes now is in time."""
        now = self._clock()
        period = max(self._period, self._silence * (now - self._started))
        self._left = min(self._burst, self._left + (now - self._counted_at) / period)
        self._counted_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Told:
    """Words of progress: a day's job has 4,000 of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace = Pace(period=0.5, burst=8, silence=0.002, clock=clock)

    def take(self, body: bytes) -> Progress | None:
        """Read a frame's body; None, unread, for one that came too soon. Raises BrokenFrame."""
        if not self._pace.lets_through():
            return None
        try:
            return Progress.decode(body)
        except ValueError as error:
            raise BrokenFrame(f"no word of progress: {error}") from None


class Gallery:
    """Pictures: a day's job has a hundred of them, of 64 KiB at most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace = Pace(period=2.0, burst=8, silence=0.1, clock=clock)
        self._shown = 0

    def take(self, body: bytes) -> Picture | None:
        """As `Told.take`."""
        if not self._pace.lets_through():
            return None
        try:
            said, png = Shown.decode(body)
        except ValueError as error:
            raise BrokenFrame(f"no picture: {error}") from None
        self._shown += 1
        return Picture(number=self._shown, title=said.title, step=said.step, size=len(png), data=png)
