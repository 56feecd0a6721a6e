"""Control groups (cgroup v2) of our own for jobs: the kernel counts every page that a job takes, and kills it whole.

Only a group that was delegated to us is divided: a container's own, one of a systemd unit with `Delegate=yes`, or one
that was given to an unprivileged account. Whoever is root may write to all the others, too; systemd manages those.
"""

import contextlib
import errno
import os
import secrets
import sys
from pathlib import Path

#: The leaf for the service's own processes: a group whose children have limits may hold none itself.
LEAF = "interlace"
_JOB = "interlace-job"  # then the replica's process id, and a random part
_THREADS = 256  # as the sandbox's resource limits have it
_TRIES = 10


def delegated(
    own: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/proc/self/mounts")
) -> tuple[Path | None, str]:
    """The group that is ours to divide, if there is one, and what to say of it."""
    entries = [line.split(" ") for line in _lines(mounts)]
    mounted = next((Path(mount) for _, mount, kind, *_ in entries if kind == "cgroup2"), None)
    place = next((line[3:] for line in _lines(own) if line.startswith("0::/")), None)
    if mounted is None or place is None:
        return None, "v2 is not mounted"
    folder = mounted / place.lstrip("/")
    if folder.name == LEAF:
        folder = folder.parent
    try:
        offered = _words(folder / "cgroup.controllers")
    except OSError as error:
        return None, f"v2, but {folder} cannot be read ({error.strerror})"
    if "memory" not in offered:
        return None, f"v2 without memory in {folder}"
    counted = "memory and pids" if "pids" in offered else "memory"
    if not _is_ours(folder, mounted):
        return None, f"v2 with {counted}, not delegated to this account ({folder})"
    return folder, f"v2 with {counted}, delegated to this account ({folder})"


class JobGroups:
    """Makes a group for each job, below the one that was delegated."""

    def __init__(self, folder: Path) -> None:
        """Divide the group ``folder``, and remove what former replicas left in it. Raises OSError."""
        self._folder = folder
        self._made: set[JobGroup] = set()
        _divide(folder)
        for left in folder.glob(f"{_JOB}-*"):
            if not Path("/proc", left.name.split("-")[2]).exists():
                JobGroup(left).remove()

    @classmethod
    def open(cls) -> "JobGroups | None":
        """For the jobs of this process; None where no group was delegated to us, or it cannot be divided."""
        folder, _ = delegated()
        try:
            return None if folder is None else cls(folder)
        except OSError as error:
            print(f"jobs get no control groups of their own: {error}", file=sys.stderr, flush=True)
            return None

    def add(self, pid: int) -> "JobGroup":
        """A new group with this process in it. Raises OSError. May take a few milliseconds."""
        group = JobGroup(self._folder / f"{_JOB}-{os.getpid()}-{secrets.token_hex(4)}")
        group.path.mkdir()
        self._made = {made for made in self._made if made.path.exists()} | {group}
        try:
            group.bound("memory.oom.group", 1)
            group.bound("memory.swap.max", 0)
            group.bound("pids.max", _THREADS)
            _write(group.path / "cgroup.procs", str(pid))
        except OSError:
            group.remove()
            raise
        return group

    def close(self) -> None:
        """Kill and remove every group that is left."""
        for group in self._made:
            group.remove()


class JobGroup:
    """The group of one job's processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def limit(self, memory_bytes: int) -> None:
        """Let the group hold ``memory_bytes`` over what it holds now. Raises OSError."""
        now = int((self.path / "memory.current").read_text())
        _write(self.path / "memory.max", str(now + memory_bytes))

    def is_over(self) -> bool:
        """Whether the kernel has killed the job because the group, not the whole machine, was out of memory."""
        try:
            events = dict(line.split() for line in (self.path / "memory.events").read_text().splitlines())
        except OSError:  # it is removed
            return False
        return int(events["oom"]) > 0 and int(events["oom_kill"]) > 0

    def kill(self) -> None:
        """Kill every process in the group, where the kernel can (5.14)."""
        with contextlib.suppress(OSError):
            _write(self.path / "cgroup.kill", "1")

    def remove(self) -> None:
        """Kill what is left and remove the group; one whose processes have not ended yet stays."""
        self.kill()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def bound(self, name: str, value: int) -> None:
        """Write a limit that not every kernel has."""
        with contextlib.suppress(FileNotFoundError):
            _write(self.path / name, str(value))


def _is_ours(folder: Path, mounted: Path) -> bool:
    needed = (folder, folder / "cgroup.procs", folder / "cgroup.subtree_control")
    if not all(os.access(path, os.W_OK) for path in needed):
        return False
    if folder == mounted:  # a container's own, or the machine's, which has no limits
        return (folder / "memory.max").exists()
    return _is_marked(folder) or not os.access(folder.parent / "cgroup.procs", os.W_OK)


def _is_marked(folder: Path) -> bool:
    """Whether systemd says that it leaves the group to its unit."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _divide(folder: Path) -> None:
    """Move the processes of a group into a leaf of it, and have the kernel count each group below. Raises OSError."""
    leaf = folder / LEAF
    offered = _words(folder / "cgroup.controllers")
    wanted = " ".join(f"+{name}" for name in ("memory", "pids") if name in offered)
    for tries_left in reversed(range(_TRIES)):
        pids = _words(folder / "cgroup.procs")
        if "0" in pids:
            raise OSError(errno.EBUSY, f"{folder} holds processes that are not in sight from here")
        leaf.mkdir(exist_ok=True)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _write(leaf / "cgroup.procs", pid)
        try:
            return _write(folder / "cgroup.subtree_control", wanted)
        except OSError as error:  # some process may have forked meanwhile
            if error.errno != errno.EBUSY or not tries_left:
                raise


def _lines(file: Path) -> list[str]:
    """A file of /proc; no lines where the kernel was built without groups."""
    return file.read_text().splitlines() if file.exists() else []


def _words(file: Path) -> set[str]:
    return set(file.read_text().split())


def _write(file: Path, text: str) -> None:
    """Write to one of the kernel's files; none is made where there is none."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
