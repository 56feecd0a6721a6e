"""Leave no holes in the heap that a zygote's children inherit, and few page-table entries.

Loading leaves hundreds of megabytes free in small pieces: half-empty pools of Python objects, gaps between blocks of
malloc's. A child would spread what it makes over all of them, and pay for a copy of each page that it writes to. With
the holes filled it makes new things side by side, in few new pages.

What is left are 300 MB in pages of 4 KiB, which each fork lists anew and each end of a child takes down one by one. In
pages of 2 MiB a fork takes 4.5 ms of processor time for 18, and its child's start and end 6.5 for 21; what a child
writes to is copied in pieces of 4 KiB all the same.

The heap's end, from which a child takes what its job asks for, lies ready in huge pages, too: 8 MiB of it, given ahead
of a job, take 0.2 to 1 ms in place of 2.9.
"""

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch

_LARGEST, _SMALLEST = 64 << 20, 16  # bytes of the pieces that holes are filled with
_TOP = 256 << 10  # bytes that stay at the end of the heap, for what this process itself still makes
#: A line of the table that `sys._debugmallocstats` prints: class, size, pools, blocks in use, blocks that are free.
_POOLS = re.compile(r"^\s*\d+\s+(\d+)\s+\d+\s+\d+\s+(\d+)\s*$", re.MULTILINE)
_BYTES = sys.getsizeof(b"")  # of a bytes object, beside its content

_PAGE, _HUGE = os.sysconf("SC_PAGE_SIZE"), 2 << 20  # bytes
_DENSE = 3 / 4  # of a huge page's worth that must be in use for it to become one
#: madvise(2); the second and the third from Linux 5.14 and 6.1.
_MADV_HUGEPAGE, _MADV_POPULATE_WRITE, _MADV_COLLAPSE = 14, 23, 25
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT = 32 << 20  # bytes: the size up to which malloc learns to keep blocks by itself
_BLOCK = 31 << 20  # bytes: the largest that it then makes part of the heap
#: A line of /proc/PID/maps: private memory of a program's own that it writes to, malloc's and Python's.
_OWN_MEMORY = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0 *(?:\[heap\]|\[anon.*)?$", re.MULTILINE)

#: Objects of Python that lie where holes were.
_filling: list[object] = []


def fill() -> None:
    """Fill the holes of this process's heap for good; does what it can where libc or Python are others."""
    _free_scratch()
    _fill_pools()
    _fill_malloc()


def _free_scratch() -> None:
    """Free what matrix products have left for the next: pages that each child's first product would have to copy."""
    torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    if hasattr(torch_cpu, "mkl_serv_free_buffers"):
        torch_cpu.mkl_serv_free_buffers()


def _fill_pools() -> None:
    for size, free in _POOLS.findall(_statistics()):
        _filling.append([_object_of(int(size)) for _ in range(int(free))])


def _statistics() -> str:
    """What Python tells, on the standard error only, of its pools."""
    with os.fdopen(os.memfd_create("pools"), "w+b") as told:
        errors = os.dup(2)
        try:
            os.dup2(told.fileno(), 2)
            sys._debugmallocstats()
        finally:
            os.dup2(errors, 2)
            os.close(errors)
        told.seek(0)
        return told.read().decode(errors="replace")


def _object_of(size: int) -> object:
    """An object that takes a block of ``size`` bytes, a multiple of 16, in one of Python's pools."""
    if size <= 16:
        return object()
    if size <= 32:
        return float(size)
    return bytes(size - _BYTES)


class _Mallinfo2(ctypes.Structure):
    """glibc's ``struct mallinfo2``, mallinfo(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _glibc() -> ctypes.CDLL | None:
    """None where it is older than 2.33, or another."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return None
    libc.mallinfo2.restype = _Mallinfo2
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _fill_malloc() -> None:
    """Take blocks, the largest first, until malloc has none left but at the end of the heap; nothing touches them."""
    if (libc := _glibc()) is None:
        return
    libc.malloc_trim(0)
    end = libc.sbrk(0) - libc.mallinfo2().keepcost
    size = _LARGEST
    while size >= _SMALLEST:
        block = libc.malloc(size)
        if block is None or block >= end:  # no hole is that large
            libc.free(block)
            size //= 2
    libc.malloc_trim(0)
    libc.malloc(max(0, libc.mallinfo2().keepcost - _TOP))


def extend() -> None:
    """Have malloc keep what is freed, from the start as much as it would learn to, and the heap's end in huge pages.

    A forward allocates and frees the same few megabytes in each layer. Without the first each is new to the process,
    without the second it costs a page fault for 4 KiB. Children inherit both; nothing is touched yet.
    """
    if (libc := _glibc()) is None:
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _KEPT)
    libc.mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT)
    for block in [libc.malloc(_BLOCK) for _ in range(2)]:
        libc.free(block)
    first, behind = _end_of(libc)
    libc.madvise(first, behind - first, _MADV_HUGEPAGE)  # refused by a kernel without: then the pages are small


def take_ahead(size: int) -> None:
    """Have the kernel give ``size`` bytes, at most `_BLOCK`, of what malloc has free at the heap's end."""
    if (libc := _glibc()) is None:
        return
    libc.free(libc.malloc(size))  # the end may be shorter
    first, behind = _end_of(libc)
    libc.madvise(first, min(size, behind - first), _MADV_POPULATE_WRITE)  # refused by an older kernel: it comes later


def _end_of(libc: ctypes.CDLL) -> tuple[int, int]:
    """Where the whole pages begin that malloc has free at the heap's end, and the address behind them."""
    behind = libc.sbrk(0)
    return -(-(behind - libc.mallinfo2().keepcost) // _PAGE) * _PAGE, behind


def gather(about: int) -> None:
    """Have the kernel put what lies densely into huge pages, where it can; ``about`` is a descriptor of /proc/self."""
    libc = ctypes.CDLL(None)
    for start, size in list(_dense(about)):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_COLLAPSE)  # what is refused stays as it is


def _dense(about: int) -> Iterator[tuple[int, int]]:
    """Ranges of this process's memory, address and bytes, of whole huge pages' worth that are mostly in use."""
    with (
        open(os.open("maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=about)) as maps,
        open(os.open("pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=about), "rb", buffering=0) as pages,
    ):
        for found in _OWN_MEMORY.findall(maps.read()):
            first, behind = -(-int(found[0], 16) // _HUGE), int(found[1], 16) // _HUGE
            entries = _HUGE // _PAGE
            told = os.pread(pages.fileno(), max(0, behind - first) * entries * 8, first * entries * 8)
            in_use = (numpy.frombuffer(told, numpy.uint64) >> numpy.uint64(63)).reshape(-1, entries).mean(axis=1)
            dense = numpy.flatnonzero(numpy.diff(in_use >= _DENSE, prepend=False, append=False))
            for begin, end in dense.reshape(-1, 2).tolist():
                yield (first + begin) * _HUGE, (end - begin) * _HUGE
