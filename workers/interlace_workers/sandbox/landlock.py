"""Landlock: files. Stops: reading and writing anything but the libraries, TCP, signals and sockets to outside.

Source: Linux, Documentation/userspace-api/landlock.rst.
"""

import ctypes
import os
from collections.abc import Iterable

from interlace_workers.sandbox import linux

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR, _WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
#: How many rights over files each version of the interface knows; from 4 on TCP, from 6 on scopes.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_FILE_RIGHTS_NOW = 16
_TCP = 0b11
_SCOPES = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Of the kernel's Landlock. Raises OSError where there is none."""
    return linux.syscall("Landlock", _CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))


def ruleset(readable: Iterable[str], writable: Iterable[str]) -> int:
    """A descriptor of rules that allow to read what lies at these paths, and nothing else. Raises OSError."""
    now = version()
    rules = _Ruleset(
        files=(1 << _FILE_RIGHTS.get(now, _FILE_RIGHTS_NOW)) - 1,
        network=_TCP if now >= 4 else 0,
        scoped=_SCOPES if now >= 6 else 0,
    )
    size = ctypes.c_size_t(24 if now >= 6 else 16 if now >= 4 else 8)
    fd = linux.syscall("landlock_create_ruleset", _CREATE_RULESET, ctypes.byref(rules), size, ctypes.c_uint32(0))
    for path in readable:
        _allow(fd, path, _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE)
    for path in writable:
        _allow(fd, path, _READ_FILE | _WRITE_FILE)
    return fd


def restrict(rules: int) -> None:
    """Hold this process to the rules, for good."""
    linux.syscall("landlock_restrict_self", _RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))


def _allow(rules: int, path: str, rights: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        beneath = _Beneath(rights, parent)
        linux.syscall(
            f"landlock_add_rule {path}", _ADD_RULE, ctypes.c_int(rules), ctypes.c_int(_PATH_BENEATH),
            ctypes.byref(beneath), ctypes.c_uint32(0),
        )  # fmt: skip
    finally:
        os.close(parent)
