"""How much memory of its own a job holds. Its address space is bounded by the kernel; pages of the model that it
writes to count as well, and no limit of the kernel's sees these."""

import os
from dataclasses import dataclass

_PAGE = os.sysconf("SC_PAGE_SIZE")
_LONGEST = 4096  # bytes of /proc/PID/smaps_rollup
_PRIVATE = (b"Private_Clean:", b"Private_Dirty:", b"Swap:")


@dataclass(frozen=True)
class _Look:
    private: int
    faults: int
    space: int


class MemoryWatch:
    """Watches one process.

    An exact look walks all of its pages (about 2 ms for a GiB of small ones). Between two of them memory grows by no
    more than a page for each page fault and what was newly mapped, and both are cheap to read.
    """

    def __init__(self, pid: int, rollup: int, held: int | None = None) -> None:
        """Look at a process that does nothing yet; ``rollup`` is a descriptor of its ``smaps_rollup``.

        ``held`` is what a twin of it holds: that spares the exact look.
        """
        self._pid = pid
        self._rollup = rollup
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
        if last.private + (faults - last.faults) * _PAGE + max(0, space - last.space) <= self._most:
            return False
        self._last = _Look(self._private(), faults, space)
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
        return int(fields[7]), int(fields[20])
