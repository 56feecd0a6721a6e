"""A child's ties to other processes. Stops: signals to siblings by group, orphans, reading another job's pipes."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Collection

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def own_session() -> None:
    """Leave the parent's session and process group, so that the whole group can be killed at once."""
    os.setsid()


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Raises ProcessLookupError if it has already."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        raise ProcessLookupError(parent)


def close_all_but(keep: int) -> None:
    """Close every descriptor but the standard three, which lead nowhere, and ``keep``."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


def adopt_orphans() -> None:
    """Become the parent of whatever a child leaves running, so that it can be found and killed. Raises OSError."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def kill_children(but: Collection[int] = ()) -> None:
    """Kill and reap every child of this process, and what each leaves in turn, but for the pids in ``but``."""
    while strays := _children() - set(but):
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in strays:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> set[int]:
    """The children of this process, which has one thread."""
    me = os.getpid()
    with open(f"/proc/{me}/task/{me}/children") as file:
        return {int(pid) for pid in file.read().split()}
