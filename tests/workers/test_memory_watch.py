"""How much a job holds: what the kernel's cheap counters miss is seen all the same."""

import mmap
import multiprocessing
import os
from multiprocessing.connection import Connection

from interlace_workers.executors.memory import MemoryWatch

_SHARED = 32 << 20  # bytes


def _hold(say: Connection) -> None:
    """Hold memory that is shared with a twin, and no more once the twin has ended: without a fault or a mapping."""
    memory = mmap.mmap(-1, _SHARED, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"x" * _SHARED)
    waits, ends = os.pipe()
    if (twin := os.fork()) == 0:
        os.close(ends)
        os.read(waits, 1)
        os._exit(0)
    say.send("shared")
    say.recv()
    os.close(ends)
    os.waitpid(twin, 0)
    say.send("alone")
    say.recv()


def test_what_no_counter_tells_is_seen_a_second_later() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(theirs,))
    process.start()
    now = 0.0
    try:
        assert ours.recv() == "shared"
        rollup = os.open(f"/proc/{process.pid}/smaps_rollup", os.O_RDONLY)
        assert process.pid is not None
        watch = MemoryWatch(process.pid, rollup, clock=lambda: now)
        watch.limit(_SHARED // 2)
        assert not watch.is_over()
        ours.send("go")
        assert ours.recv() == "alone"
        now = 0.5
        assert not watch.is_over()  # the counters are asked, and know nothing
        now = 1.5
        assert watch.is_over()
    finally:
        ours.close()
        process.join(60)
        process.kill()
    os.close(rollup)
