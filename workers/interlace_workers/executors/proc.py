"""What the kernel tells of a process, read from outside it."""

import contextlib
import os
import time

_PAGE = os.sysconf("SC_PAGE_SIZE")
_LONGEST = 8192  # bytes
#: With a process's number above it, its clock's: what clock_getcpuclockid(3) gives. It counts nanoseconds, where
#: /proc/PID/stat has steps of 10 ms.
_CPU_CLOCK = 2


def resident_bytes(pid: int) -> int:
    """Resident bytes now; 0 if the process is gone."""
    fields = _read(pid, "statm").split()
    return int(fields[1]) * _PAGE if len(fields) > 1 else 0


def peak_resident_bytes(pid: int) -> int:
    """The most resident bytes that the process ever had; 0 if it is gone."""
    _, _, found = _read(pid, "status").partition(b"VmHWM:")
    return int(found.split(maxsplit=1)[0]) << 10 if found else 0


def reset_peak(pid: int) -> None:
    """Have `peak_resident_bytes` begin anew, where the kernel lets us."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")


def cpu_seconds(pid: int) -> float:
    """Processor seconds that the process used, all its threads'; 0 if it is gone."""
    try:
        return time.clock_gettime(~pid << 3 | _CPU_CLOCK)
    except OSError:
        return 0.0


def _read(pid: int, name: str) -> bytes:
    """What the kernel has of a process under a name, at once: jobs wait for it. Empty if the process is gone."""
    try:
        file = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(file, _LONGEST)
    except OSError:
        return b""
    finally:
        os.close(file)


def has_idle_core() -> bool:
    """Whether this machine has a core that nothing runs on at this moment."""
    with open("/proc/loadavg") as file:
        running = int(file.read().split()[3].partition("/")[0])
    return running - 1 < (os.cpu_count() or 1)  # we are one of them
