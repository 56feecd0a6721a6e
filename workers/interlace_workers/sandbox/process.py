"""A child's ties to other processes. Stops: signals to siblings by group, orphans, reading another job's pipes."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
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
