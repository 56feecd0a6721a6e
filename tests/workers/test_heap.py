"""What a zygote's children inherit of its heap."""

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
