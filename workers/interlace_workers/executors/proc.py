"""What the kernel tells of a process, read from outside it."""

import contextlib
import os

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Resident bytes now; 0 if the process is gone."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def peak_resident_bytes(pid: int) -> int:
    """The most resident bytes that the process ever had; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def reset_peak(pid: int) -> None:
    """Have `peak_resident_bytes` begin anew, where the kernel lets us."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")


def cpu_seconds(pid: int) -> float:
    """Processor seconds that the process used; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK if len(fields) > 12 else 0.0


def has_idle_core() -> bool:
    """Whether this machine has a core that nothing runs on at this moment."""
    with open("/proc/loadavg") as file:
        running = int(file.read().split()[3].partition("/")[0])
    return running - 1 < (os.cpu_count() or 1)  # we are one of them
