"""Control groups: the kernel holds a job to its memory, kills it whole, and nothing is left.

Real groups need a cgroup v2 that is delegated to whoever runs the tests: in a container with a writable one, or with
`systemd-run --user --scope -p Delegate=yes make test`.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from interlace_workers.executors import cgroup
from interlace_workers.executors.cgroup import JobGroup, JobGroups

MIB = 1 << 20
LIMIT = 64 * MIB
FOLDER, SAID = cgroup.delegated()
needs_groups = pytest.mark.skipif(FOLDER is None, reason=f"this machine gives no control groups to us: {SAID}")

#: Waits for a line, then takes memory in pieces of 64 KiB, as many as its argument says, and says so.
TAKES = """
import sys
sys.stdin.readline()
held = [b"x" * (64 << 10) for _ in range(int(sys.argv[1]))]
print(len(held), flush=True)
sys.stdin.readline()
"""
#: Leaves a process in a session of its own, says its pid and waits.
LEAVES = """
import os, sys, time
sys.stdin.readline()
pid = os.fork()
if pid == 0:
    os.setsid()
    time.sleep(600)
print(pid, flush=True)
time.sleep(600)
"""

#: Starts an idle process and takes 128 MiB.
TAKES_BESIDE = """
import os, sys, time
sys.stdin.readline()
if os.fork() == 0:
    time.sleep(600)
held = [b"x" * (64 << 10) for _ in range(2048)]
"""
#: Starts idle processes until it cannot, and says how many.
FORKS = """
import os, sys, time
sys.stdin.readline()
started = 0
try:
    while started < 1000:
        if os.fork() == 0:
            time.sleep(600)
        started += 1
except BlockingIOError:
    pass
print(started, flush=True)
time.sleep(600)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.mark.parametrize(
    ("place", "controllers", "files", "said"),
    [
        ("0::/", "memory pids", ("memory.max",), "v2 with memory and pids, delegated"),
        ("0::/interlace", "memory pids", ("memory.max",), "v2 with memory and pids, delegated"),
        ("0::/", "memory", ("memory.max",), "v2 with memory, delegated"),
        ("0::/", "memory pids", (), "v2 with memory and pids, not delegated"),
        ("0::/system.slice/ssh.service", "memory pids", ("memory.max",), "v2 with memory and pids, not delegated"),
        ("0::/", "cpu pids", ("memory.max",), "v2 without memory"),
        ("0::/gone", "", (), "v2, but"),
        ("4:memory:/", "", (), "v2 is not mounted"),
    ],
)
def test_only_a_delegated_group_is_divided(
    tmp_path: Path, place: str, controllers: str, files: tuple[str, ...], said: str
) -> None:
    """Of a kernel's files as they look elsewhere. Whoever may write to the group above as well was given neither."""
    for group in (tmp_path, tmp_path / "system.slice", tmp_path / "system.slice/ssh.service"):
        group.mkdir(exist_ok=True)
        (group / "cgroup.controllers").write_text(controllers)
        for name in ("cgroup.procs", "cgroup.subtree_control", *files):
            (group / name).touch()
    (tmp_path / "mounts").write_text(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    (tmp_path / "own").write_text(f"8:pids:/\n{place}\n")
    found, text = cgroup.delegated(tmp_path / "own", tmp_path / "mounts")
    assert text.startswith(said)
    assert found == (tmp_path if ", delegated" in said else None)


@pytest.fixture
def groups() -> Iterator[JobGroups]:
    made = JobGroups.open()
    assert made is not None, SAID
    before = jobs()
    yield made
    made.close()
    gone = [group for group in jobs() if group not in before]
    assert not gone, "groups are left"


@pytest.fixture
def start() -> Iterator[Start]:
    started = []

    def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code, *arguments], **pipes)  # type: ignore[call-overload]
        started.append(process)
        return process  # type: ignore[no-any-return]

    yield start
    for process in started:
        with process:  # its pipes are closed; what it left may hold the other ends
            process.kill()


def jobs() -> list[Path]:
    """Those of this process; others on the machine may have theirs."""
    assert FOLDER is not None
    return sorted(FOLDER.glob(f"interlace-job-{os.getpid()}-*"))


def told(process: "subprocess.Popen[str]") -> str:
    """What the process says when it may go on; empty when it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def removed(group: JobGroup) -> bool:
    """Whether the group can be removed within some seconds."""
    until = time.monotonic() + 60
    while group.path.exists() and time.monotonic() < until:
        group.remove()
        time.sleep(0.05)
    return not group.path.exists()


@needs_groups
def test_a_process_over_its_memory_is_killed_by_its_group(groups: JobGroups, start: Start) -> None:
    process = start(TAKES, "2048")  # 128 MiB
    group = groups.add(process.pid)
    group.limit(LIMIT)
    assert not group.is_over()
    assert told(process) == ""
    assert process.wait(60) == -signal.SIGKILL
    assert group.is_over()
    assert removed(group)


@needs_groups
def test_a_process_within_its_memory_is_left_alone(groups: JobGroups, start: Start) -> None:
    process = start(TAKES, "512")  # 32 MiB
    group = groups.add(process.pid)
    group.limit(LIMIT)
    assert told(process) == "512"
    assert not group.is_over()
    assert process.poll() is None


@needs_groups
def test_what_a_process_held_before_does_not_count(groups: JobGroups, start: Start) -> None:
    process = start(TAKES, "1024")  # 64 MiB
    group = groups.add(process.pid)
    assert told(process) == "1024"
    group.limit(MIB)
    assert process.poll() is None
    assert not group.is_over()


@needs_groups
def test_a_process_and_all_that_it_left_are_killed_at_once(groups: JobGroups, start: Start) -> None:
    process = start(LEAVES)
    group = groups.add(process.pid)
    left = int(told(process))
    assert {str(process.pid), str(left)} <= set((group.path / "cgroup.procs").read_text().split())
    group.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert removed(group)
    assert not group.is_over(), "that was no lack of memory"


@needs_groups
def test_lack_of_memory_ends_all_processes_of_a_job(groups: JobGroups, start: Start) -> None:
    process = start(TAKES_BESIDE)
    group = groups.add(process.pid)
    group.limit(LIMIT)
    assert process.stdin is not None
    print(file=process.stdin, flush=True)
    assert process.wait(60) == -signal.SIGKILL
    until = time.monotonic() + 60
    while pids := (group.path / "cgroup.procs").read_text():
        assert time.monotonic() < until, f"{pids} goes on"
        time.sleep(0.05)


@needs_groups
def test_a_job_has_so_many_processes_and_no_more(groups: JobGroups, start: Start) -> None:
    if "pids" not in SAID:
        pytest.skip(f"this machine does not count processes: {SAID}")
    process = start(FORKS)
    group = groups.add(process.pid)
    assert told(process) == "255"
    group.kill()
    assert removed(group)


@needs_groups
def test_what_a_dead_replica_left_is_removed_and_a_living_one_keeps_its_own(groups: JobGroups, start: Start) -> None:
    assert FOLDER is not None
    dead = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    dead.wait()
    empty, full = (FOLDER / f"interlace-job-{dead.pid}-{secrets.token_hex(4)}" for _ in range(2))
    empty.mkdir()
    full.mkdir()
    stray, ours = start(TAKES, "1"), start(TAKES, "1")
    (full / "cgroup.procs").write_text(str(stray.pid))
    kept = groups.add(ours.pid)
    JobGroups(FOLDER)
    assert not empty.exists()
    assert stray.wait(30) == -signal.SIGKILL
    JobGroups(FOLDER).close()
    assert not full.exists()
    assert kept.path.exists()
    assert ours.poll() is None


@needs_groups
def test_our_own_processes_are_in_the_leaf(groups: JobGroups) -> None:
    assert FOLDER is not None
    assert (FOLDER / "cgroup.procs").read_text() == ""
    assert str(os.getpid()) in (FOLDER / "interlace" / "cgroup.procs").read_text().split()
    assert cgroup.delegated() == (FOLDER, SAID)


@needs_groups
def test_a_process_that_has_ended_gets_no_group(groups: JobGroups) -> None:
    dead = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    dead.wait()
    before = jobs()
    with pytest.raises(ProcessLookupError):
        groups.add(dead.pid)
    assert jobs() == before
