"""What this kernel offers to a sandbox. Only looked at: nothing is changed for this process."""

import ctypes
import errno
import platform
import subprocess
import sys
from pathlib import Path

from interlace_workers.executors import cgroup

_LANDLOCK_CREATE_RULESET = 444  # one number on every architecture
_VERSION_FLAG = 1
_CLONE_NEWUSER = 0x10000000
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
        "cgroups": cgroup.delegated()[1],
    }


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
