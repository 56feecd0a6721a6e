"""A child's ties to other processes. Stops: signals to siblings by group, orphans, reading another job's pipes."""

import contextlib
import os
import signal
from collections.abc import Collection

from interlace_workers.sandbox import linux


def own_session() -> None:
    """Leave the parent's session and process group, so that the whole group can be killed at once."""
    os.setsid()


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Raises ProcessLookupError if it has already."""
    linux.prctl("PR_SET_PDEATHSIG", linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent outside of our process-id namespace is seen as 0.
    if os.getppid() not in (parent, 0):
        raise ProcessLookupError(parent)


def close_all_but(*keep: int) -> None:
    """Close every descriptor but the standard three, which lead nowhere, and ``keep``."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def not_dumpable() -> None:
    """No core dump, and no look at this process's memory by others of its user."""
    linux.prctl("PR_SET_DUMPABLE", linux.PR_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Become the parent of whatever a child leaves running, so that it can be found and killed. Raises OSError."""
    linux.prctl("PR_SET_CHILD_SUBREAPER", linux.PR_SET_CHILD_SUBREAPER, 1)


class Family:
    """The children of this process, which has one thread. Works without /proc in sight: it is opened at the start."""

    def __init__(self) -> None:
        me = os.getpid()
        self._listing = os.open(f"/proc/{me}/task/{me}/children", os.O_RDONLY | os.O_CLOEXEC)

    def kill(self, but: Collection[int] = ()) -> None:
        """Kill and reap every child, and what each leaves in turn, but for the pids in ``but``."""
        while strays := self._pids() - set(but):
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in strays:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _pids(self) -> set[int]:
        os.lseek(self._listing, 0, os.SEEK_SET)
        text = b""
        while piece := os.read(self._listing, 1 << 16):
            text += piece
        return {int(pid) for pid in text.split()}
