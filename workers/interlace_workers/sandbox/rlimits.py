"""Resource limits. Stops: memory bombs, files that fill the disk, thread bombs, core dumps with somebody's data."""

import math
import os
import resource

_DESCRIPTORS = 256
_THREADS = 256


def at_fork(own_user: bool) -> None:
    """What is the same for every job: no core dump, few descriptors, no locked memory, no message queues.

    Threads are bounded where the user is the child's own: the kernel counts all of a user's.
    """
    _set(resource.RLIMIT_CORE, 0)
    _set(resource.RLIMIT_NOFILE, _DESCRIPTORS)
    _set(resource.RLIMIT_MEMLOCK, 0)
    _set(resource.RLIMIT_MSGQUEUE, 0)
    if own_user:
        _set(resource.RLIMIT_NPROC, _THREADS)


def memory(now_bytes: int, extra_bytes: int) -> None:
    """Let the address space grow by ``extra_bytes`` over what it was; more raises MemoryError in user code."""
    _set(resource.RLIMIT_AS, now_bytes + extra_bytes)


def file_size(most_bytes: int) -> None:
    """No file that this process writes grows over ``most_bytes``."""
    _set(resource.RLIMIT_FSIZE, most_bytes)


def cpu(seconds: float) -> None:
    """End the process once its threads have used so many processor seconds."""
    _set(resource.RLIMIT_CPU, math.ceil(seconds))


def address_space(proc: int) -> int:
    """Bytes of this process's address space now, out of the folder ``/proc`` behind a descriptor."""
    fd = os.open("self/statm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    with open(fd) as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _set(what: int, value: int) -> None:
    # An operator's hard limit may be lower already.
    hard = resource.getrlimit(what)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (bound, bound))
