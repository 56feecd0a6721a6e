"""Resource limits. Stops: memory bombs, files that fill the disk, core dumps with somebody's data."""

import resource


def no_core() -> None:
    """No core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def memory(extra_bytes: int) -> None:
    """Let the address space grow by ``extra_bytes`` over what it is now; more raises MemoryError in user code."""
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    bound = now + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def file_size(most_bytes: int) -> None:
    """No file that this process writes grows over ``most_bytes``."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
