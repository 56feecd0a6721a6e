"""Promise: a job that takes all that it can get, or never ends, is stopped at its limit, and the user reads which."""

from typing import Any

import pytest
from hostile import Attack

_TIME = "limits.wall_seconds"
_MEMORY = "limits.memory_bytes|[Mm]emory"

ATTACKS = [
    Attack("a loop in Python", "while True:\n    pass", fails=_TIME),
    Attack("a loop in C", "sum(range(10**12))", fails=_TIME),
    Attack("a loop in a regular expression", 're.match(r"(a+)+$", "a" * 64 + "b")', fails=_TIME),
    Attack(
        "a loop that catches everything",
        """
while True:
    try:
        while True:
            pass
    except BaseException:
        continue
""",
        fails=_TIME,
    ),
    Attack(
        "every signal blocked",
        """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
for number in range(1, 65):
    libc.signal(number, ctypes.c_void_p(1))
libc.sigfillset.argtypes = [ctypes.c_void_p]
while True:
    signal.sigtimedwait(range(1, 32), 1)
""",
        fails=_TIME,
    ),
    Attack(
        "a wait for itself",
        "import os, signal, threading\nos.kill(os.getpid(), signal.SIGSTOP)\nthreading.Event().wait()",
        fails=_TIME,
    ),
    Attack("os._exit", "os._exit(0)", fails="exit code 0"),
    Attack("abort", "os.abort()", fails="SIGABRT|SIGSEGV"),
    Attack("a segmentation fault", "ctypes.string_at(0)", fails="SIGSEGV"),
    Attack("a jump to nowhere", "ctypes.CFUNCTYPE(None)(16)()", fails="SIGSEGV"),
    Attack(
        "a stack without end",
        "sys.setrecursionlimit(10**9)\nimport pickle\ndeep = []\nfor _ in range(200_000): deep = [deep]\nrepr(deep)",
        fails="SIGSEGV|Recursion|MemoryError",
    ),
    Attack(
        "a division by zero in C", "libc.raise_ = libc['raise']\nlibc.raise_(8)\nos._exit(5)", fails="SIGFPE|code 5"
    ),
    Attack("sys.exit", "sys.exit(3)", fails="SystemExit: 3"),
    Attack("an interrupt", "raise KeyboardInterrupt", fails="KeyboardInterrupt"),
    Attack("memory of Python", "hoard = []\nwhile True:\n    hoard.append(bytearray(16 << 20))", fails=_MEMORY),
    Attack("memory of torch", "hoard = []\nwhile True:\n    hoard.append(torch.ones(1 << 20))", fails=_MEMORY),
    Attack("memory in one piece", "torch.ones(1 << 30)", fails=_MEMORY),
    Attack(
        "memory of small objects",
        "hoard = {}\nwhile True:\n    hoard[len(hoard)] = object()",
        fails=_MEMORY + "|" + _TIME,
    ),
    Attack(
        "memory of mappings",
        """
import mmap
hoard = []
while True:
    one = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, len(one), 4096):
        one[at] = 1
    hoard.append(one)
""",
        fails=_MEMORY + "|Cannot allocate",
    ),
    # Each in the place of the model's own memory, which leaves the address space as it was. The kernel keeps shared
    # pages that no table has, and gives a huge page for one fault.
    Attack(
        "memory that nobody counts",
        """
import mmap
libc.mmap.restype = ctypes.c_void_p
def map(flags):
    at = libc.mmap(None, ctypes.c_size_t(4 << 20), 3, flags, -1, ctypes.c_long(0))
    return checked(-1 if at == 2**64 - 1 else at)
weight = max(model._module.parameters(), key=lambda one: one.nbytes)
start = weight.data_ptr() // 4096 * 4096
def advise(advice):
    return checked(libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(4096), advice))
attempt("shared", map, 0x21)
attempt("shared, of Python's", mmap.mmap, -1, 4 << 20)
attempt("huge", map, 0x40022)
attempt("huge and shared", map, 0x40021)
attempt("huge pages of the model's", advise, 25)
attempt("huge pages for each fault", advise, 14)
attempt("pages merged with those of others", advise, 12)
attempt("its own", lambda: map(0x22) > 0)
attempt("its own, ahead", advise, 23)
""",
        reports={"its own": "got True", "its own, ahead": "got 0"},
    ),
    Attack(
        "pipes and descriptors",
        """
pipes = []
def hoard():
    while True:
        pipes.extend(os.pipe2(os.O_NONBLOCK))
        try:
            while True:
                os.write(pipes[-1], bytes(1 << 16))
        except BlockingIOError:
            continue
attempt("pipes", hoard)
attempt("few", lambda: len(pipes) < 300)
for fd in pipes: os.close(fd)
""",
        reports={"pipes": "EMFILE", "few": "got True"},
    ),
    Attack(
        "threads",
        """
import threading
threading.stack_size(64 << 10)
stop = threading.Event()
threads = []
def bomb():
    for _ in range(2000):
        thread = threading.Thread(target=stop.wait, daemon=True)
        thread.start()
        threads.append(thread)
attempt("bomb", bomb)
stop.set()
attempt("few", lambda: len(threads) < 300)
""",
        reports={"bomb": r"""RuntimeError\(["']can't start new thread["']\)""", "few": "got True"},
    ),
    Attack(
        "a file without end",
        """
import fcntl, stat
files = [fd for fd in range(3, 64) if not libc.fcntl(fd, 1, 0) == -1 and stat.S_ISREG(os.fstat(fd).st_mode)]
def fill(fd):
    while True:
        os.write(fd, bytes(1 << 20))
for number, fd in enumerate(files):
    attempt(f"fill {number}", fill, fd)
    attempt(f"stretch {number}", os.ftruncate, fd, 1 << 40)
    attempt(f"far {number}", os.pwrite, fd, b"x", 1 << 40)
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, 0)
""",
        {"EFBIG"},
    ),
    Attack("a result over its limit", "found['x'] = os.urandom(9 << 20).hex()", fails="limits.result_bytes"),
    Attack("a result that unpacks to much", "found['x'] = '0' * (64 << 20)", fails="limits.result_bytes"),
    Attack(
        "lines without end",
        "for _ in range(20_000):\n    print('x' * 80)\nattempt('done', lambda: 1)",
        reports={"done": "got 1"},
    ),
    Attack(
        "one line without end",
        "for _ in range(64):\n    os.write(1, b'\\x1b[2J\\xff\\0' * 100_000)\nattempt('done', lambda: 1)",
        reports={"done": "got 1"},
    ),
    Attack("empty lines until the end", "while True:\n    os.write(1, b'\\n' * 4096)", fails=_TIME),
    Attack(
        "lines that look like the service's",
        """
import json
for word in ("COMPLETED", "ERROR", "RECEIVED"):
    print(json.dumps({"id": "0" * 32, "status": word, "description": "planted", "data": "http://127.0.0.1:9/x"}))
attempt("done", lambda: 1)
""",
        reports={"done": "got 1"},
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_stopped(siege: Any, attack: Attack) -> None:
    siege.run(attack)


_PIPES = """
import stat, struct
events = max(fd for fd in range(3, 64) if libc.fcntl(fd, 1, 0) != -1 and stat.S_ISFIFO(os.fstat(fd).st_mode))
def frame(kind, body=b"", length=None):
    return struct.pack("!BI", kind, len(body) if length is None else length) + body
"""
_BROKEN = "channel that reports its end"
FORGED = [
    Attack("a length of 4 GiB", "os.write(events, frame(2, b'x', 2**32 - 1))\nwhile True: pass", fails=_BROKEN),
    Attack("an unknown kind", "os.write(events, frame(99))\nwhile True: pass", fails=_BROKEN),
    Attack("no frame at all", "os.write(events, os.urandom(1 << 15))\nwhile True: pass", fails=_BROKEN),
    Attack("half a frame", "os.write(events, b'\\2\\0')\nos._exit(3)", fails="exit code 3"),
    Attack(
        "a pickle", "os.write(events, b'\\x80\\x04cos\\nsystem\\n(S\"true\"\\ntR.')\nwhile True: pass", fails=_BROKEN
    ),
    Attack("started twice", "os.write(events, frame(1) * 9000)\nwhile True: pass", fails=_BROKEN),
    Attack(
        "a failure of its own words",
        "os.write(events, frame(3, b'as I wish \\xff'))\nwhile True: pass",
        fails="as I wish",
    ),
    Attack(
        "a failure, byte by byte",
        "for b in frame(3, b'slow'): os.write(events, bytes([b]))\nwhile True: pass",
        fails="slow",
    ),
    Attack("a body that never comes", "os.write(events, frame(3, b'x', 9999))\nwhile True: pass", fails=_TIME),
    Attack("closed", "os.close(events)\nwhile True: pass", fails=_TIME),
    Attack("words without end", "while True: os.write(events, frame(5, b'{\"step\":1}') * 4000)", fails=_BROKEN),
]


@pytest.mark.parametrize("attack", FORGED, ids=lambda attack: attack.name)
def test_frames_that_are_forged(siege: Any, attack: Attack) -> None:
    siege.run(Attack(attack.name, _PIPES + attack.source, fails=attack.fails))


def test_an_end_that_is_forged(siege: Any) -> None:
    """The job claims to be done, with a result that is none: its own client has the damage, and nobody else."""
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever a stock client makes of an empty result
        siege.run(Attack("done", _PIPES + "os.write(events, frame(2))\nwhile True: pass"))
    siege.unharmed()
