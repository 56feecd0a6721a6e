"""Exec a command that gets a signal when its parent ends: ``python -I -S tether.py PARENT SIGNAL COMMAND...``.

A program of its own, because code between fork and exec is unsafe in a parent that has threads.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h; survives exec


def main(parent: int, signal: int, command: list[str]) -> None:
    """Become the command; end at once where the parent has ended before the tie held."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
