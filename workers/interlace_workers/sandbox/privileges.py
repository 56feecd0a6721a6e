"""Users and capabilities. Stops: acting as the account that runs the service, and every privilege of root."""

import ctypes
import errno
import os

from interlace_workers.sandbox import linux

_CAPSET = (126, 91)
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_CAP_SYS_ADMIN = 21
_MOST_CAPABILITIES = 64
#: The first user id of children where all 2**32 are mapped; no distribution gives such ids to people.
_FIRST = 1_000_000_000
_SLOTS = 256
#: Where a container has only 65,536 ids: above the system's and people's own, below `nobody`.
_FIRST_OF_FEW, _FEW = 20_000, 40_000


def may_administer() -> bool:
    """Whether this process has CAP_SYS_ADMIN, which namespaces other than a user's need."""
    with open("/proc/self/status") as file:
        effective = next(line for line in file if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_ADMIN & 1)


class UserIds:
    """Gives each living child on a machine a user id that no other has."""

    def __init__(self) -> None:
        with open("/proc/self/uid_map") as file:
            first, _, count = map(int, file.readline().split())
        self._mapped = count if first == 0 else 0

    def of(self, zygote: int, slot: int) -> int:
        """The id for a slot of a zygote. Raises OSError where too few ids are mapped."""
        number = zygote * _SLOTS + slot
        if self._mapped >= 1 << 31:
            return _FIRST + number % _FIRST
        if self._mapped >= _FIRST_OF_FEW + _FEW:
            return _FIRST_OF_FEW + number % _FEW
        raise OSError(errno.EINVAL, f"only {self._mapped} user ids are mapped here")


def become(uid: int) -> None:
    """Give up root for a user id of its own; every capability of the bounding set goes with it."""
    for capability in range(_MOST_CAPABILITIES):
        try:
            linux.prctl("PR_CAPBSET_DROP", linux.PR_CAPBSET_DROP, capability)
        except OSError:
            break  # the kernel has no more of them
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop_capabilities() -> None:
    """Give up every capability, those over a user namespace of its own included."""
    if linux.ARCHITECTURE is None:
        raise OSError("unknown architecture")
    header, nothing = _Header(_LINUX_CAPABILITY_VERSION_3, 0), (_Data * 2)()
    linux.syscall("capset", _CAPSET[linux.ARCHITECTURE], ctypes.byref(header), ctypes.byref(nothing))


def no_new_privileges() -> None:
    """No program that this process starts, were it to start one, gains privileges."""
    linux.prctl("PR_SET_NO_NEW_PRIVS", linux.PR_SET_NO_NEW_PRIVS, 1)
