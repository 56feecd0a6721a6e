"""A file system of the interpreter and its libraries only. Stops: looking at what else there is, even at names."""

import contextlib
import ctypes
import os
import pwd
import sys
import sysconfig
from collections.abc import Sequence

from interlace_workers.sandbox import linux

DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR, _PIVOT_ROOT = 428, 429, 442, (155, 41)
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_RDONLY, _NOSUID, _NODEV = 1, 2, 4
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 16384, 1 << 18, 2
_NEW_ROOT = "/tmp"  # any folder that exists: a file system is put over it, seen by this process only


def libraries(hidden: str) -> list[str]:
    """What user code may read: the interpreter, what can be imported, the system's shared libraries.

    An import path is left out if the home directory or ``hidden`` lies in it.
    """
    own = [*sys.path, *sysconfig.get_paths().values(), os.path.join(sys.base_prefix, "lib")]
    kept = {sysconfig.get_path("include"), sysconfig.get_path("scripts"), sysconfig.get_path("data")}
    secret = [hidden]
    with contextlib.suppress(KeyError):  # a container may run under an id without a name
        secret.append(pwd.getpwuid(os.getuid()).pw_dir)
    paths = {os.path.abspath(path) for path in own if path and path not in kept}
    paths = {path for path in paths if not any(_within(one, path) for one in secret)}
    return _outermost(sorted(path for path in (*paths, *_SYSTEM) if os.path.exists(path)))


def _outermost(paths: Sequence[str]) -> list[str]:
    found: list[str] = []
    for path in paths:
        if not any(_within(path, other) for other in found):
            found.append(path)
    return found


def _within(path: str, folder: str) -> bool:
    return os.path.commonpath((os.path.realpath(path), os.path.realpath(folder))) == os.path.realpath(folder)


def enter(readable: Sequence[str]) -> None:
    """Make a file system with these paths, read-only, the root of this process. Raises OSError.

    Needs the privilege to mount.
    """
    if linux.ARCHITECTURE is None:
        raise OSError("unknown architecture")
    linux.unshare("unshare(CLONE_NEWNS)", linux.CLONE_NEWNS)
    linux.mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    trees = [(path, _clone(path)) for path in (*readable, *DEVICES)]
    linux.mount("tmpfs", _NEW_ROOT, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    former = os.umask(0o022)  # children have user ids of their own, and go through these folders
    try:
        os.chdir(_NEW_ROOT)
        for path, tree in trees:
            _attach(tree, path)
        root = _open(".")
        _set_attributes(root, _RDONLY | _NOSUID | _NODEV, 0)
        os.close(root)
        linux.syscall("pivot_root", _PIVOT_ROOT[linux.ARCHITECTURE], b".", b".")
    except OSError:
        os.chdir("/")
        linux.umount(_NEW_ROOT, _MNT_DETACH)  # libraries may lie under what it hides
        raise
    finally:
        os.umask(former)
    linux.umount(".", _MNT_DETACH)
    os.chdir("/")


def _clone(path: str) -> int:
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    tree = linux.syscall(
        f"open_tree {path}", _OPEN_TREE, ctypes.c_int(_AT_FDCWD), os.fsencode(path), ctypes.c_uint(flags)
    )
    _set_attributes(tree, _RDONLY | _NOSUID | (0 if path in DEVICES else _NODEV), _AT_RECURSIVE)
    return tree


def _attach(tree: int, path: str) -> None:
    place = "." + path
    if os.path.isdir(tree):
        os.makedirs(place, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        open(place, "x").close()
    linux.syscall(
        f"move_mount {path}", _MOVE_MOUNT, ctypes.c_int(tree), b"", ctypes.c_int(_AT_FDCWD), os.fsencode(place),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )  # fmt: skip
    os.close(tree)


def _open(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


class _Attributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def _set_attributes(fd: int, attributes: int, flags: int) -> None:
    wanted = _Attributes(attributes, 0, 0, 0)
    linux.syscall(
        "mount_setattr", _MOUNT_SETATTR, ctypes.c_int(fd), b"", ctypes.c_uint(_AT_EMPTY_PATH | flags),
        ctypes.byref(wanted), ctypes.c_size_t(ctypes.sizeof(wanted)),
    )  # fmt: skip
