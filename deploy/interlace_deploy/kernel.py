"""What this kernel offers to a sandbox. Only looked at: nothing is changed for this process."""

import ctypes
import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

_LANDLOCK_CREATE_RULESET = 444  # one number on every architecture
_VERSION_FLAG = 1
_CLONE_NEWUSER = 0x10000000
_CONTROLLERS = frozenset({"memory", "pids"})
_ENTER_NAMESPACE = f"import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare({_CLONE_NEWUSER}) != 0)"


def features() -> dict[str, str]:
    """Kernel features by name, each as a short text."""
    if sys.platform != "linux":
        return {"release": f"{platform.system()}: no sandbox layers"}
    return {
        "release": platform.release(),
        "landlock": _landlock(),
        "seccomp": _seccomp(),
        "user namespaces": _user_namespaces(),
        "cgroups": cgroups(),
    }


def cgroups(own: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/proc/self/mounts")) -> str:
    """Whether groups of processes with limits on memory and on their number could be made below our own one."""
    entries = [line.split(" ") for line in mounts.read_text().splitlines()]
    mounted = next((Path(mount) for _, mount, kind, *_ in entries if kind == "cgroup2"), None)
    place = next((line[3:] for line in own.read_text().splitlines() if line.startswith("0::/")), None)
    if mounted is None or place is None:
        return "v2 is not mounted"
    folder = mounted / place.lstrip("/")
    try:
        offered = set((folder / "cgroup.controllers").read_text().split())
    except OSError as error:
        return f"v2, but {folder} cannot be read ({error.strerror})"
    if lacking := ", ".join(sorted(_CONTROLLERS - offered)):
        return f"v2 without {lacking} in {folder}"
    needed = (folder, folder / "cgroup.procs", folder / "cgroup.subtree_control")
    delegated = all(os.access(path, os.W_OK) for path in needed)
    return f"v2 with memory and pids, {'delegated' if delegated else 'not delegated'} to this account ({folder})"


def _landlock() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    return f"ABI {abi}" if abi > 0 else f"none ({errno.errorcode.get(ctypes.get_errno(), '?')})"


def _seccomp() -> str:
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    return actions.read_text().strip() if actions.exists() else "none"


def _user_namespaces() -> str:
    """Tried in a process of its own, because entering one cannot be undone."""
    tried = subprocess.run([sys.executable, "-I", "-S", "-c", _ENTER_NAMESPACE], check=False, timeout=30)
    return "allowed" if tried.returncode == 0 else "not allowed"
