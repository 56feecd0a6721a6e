"""Memory for a model's weights, in pages of 2 MiB, which a zygote begins to take while it still imports.

A virtual machine may need 5 ms for each of them, where its host takes back what is free: a second and more for 500 MiB,
in which the process's other thread imports. Needs the standard library only.
"""

import contextlib
import ctypes
import mmap
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

from interlace_workers import channel
from interlace_workers.order import Load

_libc = ctypes.CDLL(None)
_PIECE = 32 << 20  # bytes that one thread takes at a time
_MADV_POPULATE_WRITE = 23  # madvise(2), from Linux 5.14
_MORE = 16 << 20  # bytes, and an eighth, for what is in no file: buffers, and gaps between tensors


class Reserve(Thread):
    """Hears which model a zygote shall load, and takes memory for it, until that is asked for."""

    def __init__(self, parent: socket.socket) -> None:
        super().__init__(name="reserve", daemon=True)
        self.parent = parent
        self._load: Load | None = None
        self._heard = Event()
        self._enough = Event()
        self._arena: mmap.mmap | None = None
        self.start()

    def load(self) -> Load | None:
        """What to load, once it is known; None if no model needs us."""
        self._heard.wait()
        return self._load

    def end(self) -> mmap.mmap | None:
        """The memory, some of it there already; afterwards the thread is gone."""
        self._enough.set()
        self.join()
        arena, self._arena = self._arena, None
        return arena

    def run(self) -> None:
        try:
            self._load = Load(**channel.receive(self.parent)[0]["load"])
        except EOFError:
            return
        finally:
            self._heard.set()
        if size := self._load.size_bytes:
            with contextlib.suppress(OSError):  # so much is not to be had, as loading may show
                self._arena = allocate(size + size // 8 + _MORE)
                self._touch(self._arena, size)

    def _touch(self, arena: mmap.mmap, size: int) -> None:
        """By writing, for which the kernel locks a page, and not by `populate`, for which others wait that import."""
        start = _address(arena)
        for offset in range(0, size, _PIECE):
            if self._enough.is_set():
                return
            _libc.memset(ctypes.c_void_p(start + offset), 0, ctypes.c_size_t(min(_PIECE, size - offset)))


def begun(descriptor: str) -> Reserve:
    """One that listens to the parent whose channel that is."""
    return Reserve(socket.socket(fileno=int(descriptor)))


def allocate(size: int) -> mmap.mmap:
    """Private memory that is to come in huge pages, none of which is there yet."""
    arena = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    arena.madvise(mmap.MADV_HUGEPAGE)
    return arena


def populate(arena: mmap.mmap) -> None:
    """Have the kernel give all pages that are not there, on all cores.

    Where it cannot, they come one by one as they are written to.
    """
    start = _address(arena)

    def piece(offset: int) -> None:
        size = min(_PIECE, len(arena) - offset)
        _libc.madvise(ctypes.c_void_p(start + offset), ctypes.c_size_t(size), _MADV_POPULATE_WRITE)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # none is left when this ends
        list(threads.map(piece, range(0, len(arena), _PIECE)))


def _address(arena: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(arena))
