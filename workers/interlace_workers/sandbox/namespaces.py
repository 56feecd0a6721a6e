"""Namespaces. Stops: seeing, signalling and talking to anything outside, over the network, shared memory or mounts."""

import os

from interlace_workers.sandbox import linux

#: Entered by the child itself, with the privileges of the zygote.
OWN = {
    "network namespace": linux.CLONE_NEWNET,
    "ipc namespace": linux.CLONE_NEWIPC,
    "uts namespace": linux.CLONE_NEWUTS,
    "mount namespace": linux.CLONE_NEWNS,
}


def enter(name: str) -> None:
    """Enter a new namespace: a network without an interface, no shared memory, a host name or mounts of its own."""
    linux.unshare(f"unshare ({name})", OWN[name])


def own_user() -> None:
    """Enter a user namespace in which no id means anybody."""
    linux.unshare("unshare(CLONE_NEWUSER)", linux.CLONE_NEWUSER)


def root_of_own() -> None:
    """Without root: become root of a user namespace, so that the other namespaces can be had. Raises OSError."""
    uid, gid = os.getuid(), os.getgid()
    linux.unshare("unshare(CLONE_NEWUSER)", linux.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


class ProcessIds:
    """Forks children that are process 1 of a namespace of their own: they see nobody, and all dies with them."""

    def __init__(self) -> None:
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def fork(self) -> int:
        """As os.fork. Raises OSError; needs root."""
        linux.unshare("unshare(CLONE_NEWPID)", linux.CLONE_NEWPID)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                linux.setns("setns(CLONE_NEWPID)", self._own, linux.CLONE_NEWPID)
        return pid
