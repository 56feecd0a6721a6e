"""What a zygote's children inherit of its heap."""

import os
import subprocess
import sys

_HOLES = """
import ctypes, gc
from interlace_workers import heap

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = heap._Mallinfo2

def free_bytes():
    info = libc.mallinfo2()
    pools = heap._POOLS.findall(heap._statistics())
    return info.fordblks - info.keepcost, sum(int(size) * int(free) for size, free in pools)

kept = [(bytearray(5_000), bytearray(700), [bytes(100), {}]) for _ in range(4_000)]
kept = [(one, two) for number, (one, _, two) in enumerate(kept) if number % 2]
gc.collect()
print(*free_bytes())
heap.fill()
print(*free_bytes())
new = [bytearray(600) for _ in range(50)]
print(all(one == bytearray(600) for one in new) and all(one == bytearray(5_000) for one, _ in kept))
"""


_PAGES = """
import ctypes, mmap, os
from interlace_workers import heap

def at(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))

def in_use():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def huge():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("AnonHugePages:")) << 10

size = 32 << 20
dense, sparse = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE), mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
for page in range(0, size, 4096):
    dense[page] = 7
for page in range(0, size, 16 * 4096):
    sparse[page] = 7
about = os.open("/proc/self", os.O_PATH)
ranges = list(heap._dense(about))
begin, far = at(dense), at(sparse)
print(sum(min(start + length, begin + size) - max(start, begin) for start, length in ranges
          if start < begin + size and start + length > begin))
print(sum(start < far + size and start + length > far for start, length in ranges))
probe = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE)
probe[:] = bytes(1) * len(probe)
start = -(-at(probe) // heap._HUGE) * heap._HUGE
print(ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(heap._HUGE), heap._MADV_COLLAPSE))
before, already = in_use(), huge()
heap.gather(about)
print(huge() - already, in_use() - before)
print(all(dense[page] == 7 for page in range(0, size, 4096)))
"""


_AHEAD = """
import contextlib, ctypes, mmap, resource
from interlace_workers import heap

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def faults_of(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(ctypes.c_void_p(block), 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def huge():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("AnonHugePages:")) << 10

probe = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE)
with contextlib.suppress(OSError):
    probe.madvise(mmap.MADV_HUGEPAGE)
probe[:] = bytes(1) * len(probe)
given = huge()
heap.fill()
heap.extend()
already = huge()
heap.take_ahead(24 << 20)
page = ctypes.c_void_p(-(-libc.malloc(8192) // 4096) * 4096)
print(libc.madvise(page, ctypes.c_size_t(4096), heap._MADV_POPULATE_WRITE))
print(given, huge() - already)
print(faults_of(23 << 20), faults_of(30 << 20), faults_of(30 << 20))
"""


def test_memory_that_was_taken_ahead_costs_no_page_faults_and_what_is_freed_is_kept() -> None:
    forgetful = os.environ | {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", _AHEAD]
    told = subprocess.run(command, env=forgetful, capture_output=True, text=True, check=True).stdout
    refused, pages, faults = told.splitlines()
    given, huge = map(int, pages.split())
    ahead, more, again = map(int, faults.split())
    assert ahead < 100 or int(refused)  # by a kernel without the call
    assert huge >= 2 << 20 or not given  # by a kernel without them, or without memory in such pieces
    assert more > 0
    assert again < 100


def test_what_lies_densely_goes_into_huge_pages_and_what_does_not_stays() -> None:
    told = subprocess.run([sys.executable, "-c", _PAGES], capture_output=True, text=True, check=True).stdout
    dense, sparse, refused, gathered, intact = told.splitlines()
    assert int(dense) >= 28 << 20  # but for what its ends share with their neighbours
    assert sparse == "0"
    huge, more = map(int, gathered.split())
    assert huge >= 2 << 20 or int(refused)  # by a kernel without the call, or without memory in such pieces
    assert more < 32 << 20
    assert intact == "True"


def test_no_holes_are_left_in_it_and_what_lies_there_stays() -> None:
    told = subprocess.run([sys.executable, "-c", _HOLES], capture_output=True, text=True, check=True).stdout
    before, after, intact = told.splitlines()
    malloc_before, pools_before = map(int, before.split())
    malloc_after, pools_after = map(int, after.split())
    assert malloc_before > 4_000_000
    assert malloc_after < malloc_before / 20
    assert pools_before > 100_000
    assert pools_after < pools_before / 2
    assert intact == "True"
