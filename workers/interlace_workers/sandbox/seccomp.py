"""seccomp: system calls. Stops: sockets, new processes and programs, ptrace, mounts, and the kernel's rarer doors.

A classic BPF program over the call's number and arguments (Linux, Documentation/userspace-api/seccomp_filter.rst):
what is not listed in `syscalls.py` fails with EPERM.
"""

import ctypes
import errno
import os
import struct

from interlace_workers.sandbox import linux
from interlace_workers.sandbox.syscalls import ALLOWED, CHECKED

_SECCOMP = (317, 277)
_SET_MODE_FILTER = 1
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_LOAD, _JUMP_EQUAL, _JUMP_SET, _AND, _RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_DENY = _ERRNO | errno.EPERM
_UNKNOWN = _ERRNO | errno.ENOSYS
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

#: A thread shares memory, signal handlers and its process with its creator; a process does not.
_THREAD = 0x00000100 | 0x00000800 | 0x00010000  # CLONE_VM, CLONE_SIGHAND, CLONE_THREAD
_NAMESPACES = 0x7E020000  # every CLONE_NEW*
#: ioctl: the size and kind of a terminal, bytes that wait, close-on-exec, non-blocking.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
#: prctl: a thread's name, a mapping's name, and what the C library asks.
_PRCTLS = (3, 15, 16, 21, 39, 0x53564D41)
#: fcntl: duplicate, flags. Not: locks, through which jobs could talk, whom to signal, the size of a pipe, seals.
_FCNTLS = (0, 1, 2, 3, 4, 1030)
#: madvise: how it will be read, that it is not needed, that it will be written to, what a fork and a core dump have of
#: it. Not: huge pages, of which one counts as one fault of 4 KiB, nor pages merged with equal ones of others.
_ADVICE = (0, 1, 2, 3, 4, 8, 15, 16, 17, 18, 19, 22, 23)
#: mmap: shared memory without a file stays when it is not in any page table; huge pages are the operator's.
_SHARED_ANONYMOUS, _HUGETLB = 0x01 | 0x20, 0x40000

_Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(pid: int) -> None:
    """Hold this process to the filter, for good; ``pid`` is itself, whom it may signal. Raises OSError."""
    if linux.ARCHITECTURE is None:
        raise OSError(errno.ENOSYS, f"seccomp: no filter for {os.uname().machine}")
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _instructions(linux.ARCHITECTURE, pid))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    linux.syscall(
        "seccomp", _SECCOMP[linux.ARCHITECTURE], ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(0),
        ctypes.byref(program),
    )  # fmt: skip


def _instructions(architecture: int, pid: int) -> list[_Instruction]:
    number = {name: numbers[architecture] for name, numbers in (ALLOWED | CHECKED).items()}
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[architecture]),
        (_RETURN, 0, 0, _KILL),  # a 32-bit call, whose numbers mean something else
        (_LOAD, 0, 0, _NUMBER),
    ]
    checks = {
        "clone": _thread_only(),
        "clone3": [(_RETURN, 0, 0, _UNKNOWN)],  # its flags are in memory; the C library then calls clone
        "ioctl": _one_of(1, _IOCTLS),
        "prctl": _one_of(0, _PRCTLS),
        "fcntl": _one_of(1, _FCNTLS),
        "madvise": _one_of(2, _ADVICE),
        "mmap": _countable(),
        "prlimit64": _one_of(0, (0, pid)),
        "kill": _one_of(0, (pid,)),
        "tgkill": _one_of(0, (pid,)),
    }
    for name, check in checks.items():
        program.append((_JUMP_EQUAL, 0, len(check), _known(number[name])))
        program += check
    allowed = [found for name in ALLOWED if (found := number[name]) is not None]
    for position, found in enumerate(allowed):
        program.append((_JUMP_EQUAL, len(allowed) - position, 0, found))
    return [*program, (_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW)]


def _argument(index: int) -> _Instruction:
    """Load the low half of an argument: the kernel looks at no more of these."""
    return (_LOAD, 0, 0, _FIRST_ARGUMENT + 8 * index)


def _one_of(index: int, values: tuple[int, ...]) -> list[_Instruction]:
    tests = [(_JUMP_EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)]
    return [_argument(index), *tests, (_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW)]


def _thread_only() -> list[_Instruction]:
    return [
        _argument(0),
        (_JUMP_SET, 3, 0, _NAMESPACES),
        (_AND, 0, 0, _THREAD),
        (_JUMP_EQUAL, 0, 1, _THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _DENY),
    ]


def _countable() -> list[_Instruction]:
    """Memory that /proc shows as the process's own for as long as it holds it."""
    return [
        _argument(3),
        (_JUMP_SET, 2, 0, _HUGETLB),
        (_AND, 0, 0, _SHARED_ANONYMOUS),
        (_JUMP_EQUAL, 0, 1, _SHARED_ANONYMOUS),
        (_RETURN, 0, 0, _DENY),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _known(number: int | None) -> int:
    if number is None:
        raise ValueError("a call that is checked exists everywhere")
    return number
