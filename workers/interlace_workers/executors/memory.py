"""How much memory of its own a job holds. Its address space is bounded by the kernel; pages of the model that it
writes to count as well, and no limit of the kernel's sees these."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

_PAGE = os.sysconf("SC_PAGE_SIZE")
_LONGEST = 4096  # bytes of /proc/PID/smaps_rollup
_PRIVATE = (b"Private_Clean:", b"Private_Dirty:", b"Swap:")
_PERIOD = 1.0  # seconds after which the next look is exact in any case
_SHARE = 100  # of the time, one part may go into exact looks that nothing calls for


@dataclass(frozen=True)
class _Look:
    private: int
    faults: int
    space: int


class MemoryWatch:
    """Watches one process.

    An exact look walks all of its pages, those that it shares, too (9 ms where a model of 1 GB is). Between two of them
    memory grows by a page for each page fault and what was newly mapped, and both are cheap to read. Where the kernel
    gives huge pages unasked, one fault is 512 pages: so an exact look comes in any case, after a second or more.
    """

    def __init__(
        self, pid: int, rollup: int, held: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Look at a process that does nothing yet; ``rollup`` is a descriptor of its ``smaps_rollup``.

        ``held`` is what a twin of it holds: that spares the exact look.
        """
        self._pid = pid
        self._rollup = rollup
        self._clock = clock
        #: When the next look is exact, whatever the counters say.
        self._due = clock() + _PERIOD
        #: Bytes that the process held at first.
        self.held = self._private() if held is None else held
        self._last = _Look(self.held, *self._counters())
        self._most = self.held

    def limit(self, most_bytes: int) -> None:
        """Let the process hold so many bytes over what it held at first."""
        self._most += most_bytes

    def is_over(self) -> bool:
        """Whether the process holds more than it may; False once it is gone."""
        faults, space = self._counters()
        last = self._last
        at_most = last.private + (faults - last.faults) * _PAGE + max(0, space - last.space)
        if at_most <= self._most and self._clock() < self._due:
            return False
        began = time.thread_time()
        self._last = _Look(self._private(), faults, space)
        self._due = self._clock() + max(_PERIOD, _SHARE * (time.thread_time() - began))
        return self._last.private > self._most

    def _private(self) -> int:
        """Bytes of pages that the process shares with nobody."""
        try:
            lines = os.pread(self._rollup, _LONGEST, 0).splitlines()
        except ProcessLookupError:
            return 0
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(_PRIVATE))

    def _counters(self) -> tuple[int, int]:
        """Page faults so far, and bytes of address space."""
        try:
            with open(f"/proc/{self._pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return 0, 0
        return int(fields[7]) + int(fields[9]), int(fields[20])  # minor faults and major ones
