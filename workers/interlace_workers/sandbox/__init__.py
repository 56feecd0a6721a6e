"""The layers around a child that runs user code, and their order.

`enter` runs right after the fork, before anything is known of the job; `limit` when the job is known, before the
first byte of its payload is read.
"""

from interlace_workers.sandbox import process, rlimits


def enter(parent: int, keep: int) -> None:
    """Cut the child off from its siblings: own session, dies with its parent, no descriptor but ``keep``."""
    process.own_session()
    process.die_with(parent)
    process.close_all_but(keep)


def limit(memory_bytes: int, result_bytes: int) -> None:
    """Bound what the kernel can bound. Raises OSError if it refuses: then nothing may run."""
    rlimits.no_core()
    rlimits.memory(memory_bytes)
    rlimits.file_size(result_bytes)
