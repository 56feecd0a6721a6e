"""System calls that Python has no name for. Raises OSError with the call's name where the kernel refuses."""

import ctypes
import os
import platform

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

#: Position of this machine's column in tables of call numbers; None: not an architecture that we know.
ARCHITECTURE = {"x86_64": 0, "aarch64": 1}.get(platform.machine())


def syscall(name: str, number: int, *arguments: object) -> int:
    """Make a call by its number."""
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    return _checked(name, result)


def prctl(name: str, option: int, value: int = 0) -> None:
    zero = ctypes.c_ulong(0)
    _checked(name, _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def unshare(name: str, flags: int) -> None:
    _checked(name, _libc.unshare(ctypes.c_int(flags)))


def setns(name: str, fd: int, kind: int) -> None:
    _checked(name, _libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    result = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode() or None
    )
    _checked(f"mount {target}", result)


def umount(target: str, flags: int) -> None:
    _checked(f"umount {target}", _libc.umount2(os.fsencode(target), ctypes.c_int(flags)))


def _checked(name: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result
