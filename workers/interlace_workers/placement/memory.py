"""Whether a replica has room before it is loaded, and which idle models leave for it. Bytes everywhere.

What a replica takes is known from its checkpoint's headers: the weights in the type that was asked for, a margin, and
what any process with torch and transformers in it holds.
"""

import contextlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from interlace_state.config import Config
from interlace_state.hostable import BASE_BYTES
from interlace_state.settings.hosting import MemoryConfig

#: What another replica holds that shares the weights and all else of its zygote.
SHARED_BYTES = 120 << 20


@dataclass(frozen=True)
class Room:
    """One machine: what models can have of it, and what they can have now."""

    node: str
    total: int
    free: int


@dataclass(frozen=True)
class Occupant:
    """A model in memory."""

    name: str
    #: By machine; under "", what is on one of them that is not known.
    on: Mapping[str, int]
    #: When its last job was there, by any clock.
    used_at: float
    #: Why it does not leave; empty where it would.
    stays: str = ""
    #: Whether it may leave later, when its jobs have ended.
    later: bool = False
    #: Whether it is leaving already.
    going: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether there is room. If not: who leaves for it, or a sentence with the numbers."""

    fits: bool = False
    leave: Sequence[str] = field(default_factory=tuple)
    #: Whether there may be room later.
    waits: bool = False
    text: str = ""


def need(size_bytes: int | None, settings: MemoryConfig) -> int:
    """What a replica takes, whose weights take ``size_bytes`` as they are held."""
    return int((size_bytes or 0) * (1 + settings.margin)) + BASE_BYTES


def room_for_another(wanted: int, rooms: Sequence[Room]) -> Verdict:
    """Whether a replica more has room, of a model that runs: nobody leaves for it."""
    if any(room.free >= wanted for room in rooms):
        return Verdict(fits=True)
    return Verdict(waits=True, text=f"{_numbers(wanted, rooms, 'Another')} No model leaves for it.")


def judge(wanted: int, rooms: Sequence[Room], occupants: Sequence[Occupant], settings: MemoryConfig) -> Verdict:
    """Find room for ``wanted`` bytes: on the machine where the fewest models must leave, those first that nobody has
    used for the longest time."""
    if any(room.free >= wanted for room in rooms):
        return Verdict(fits=True)
    plans = [plan for room in rooms if (plan := _leaving(wanted, room, occupants)) is not None]
    if plans:
        leave = min(plans, key=len)
        who = ", ".join([one.name for one in occupants if one.going] + leave)
        return Verdict(leave=tuple(leave), waits=True, text=f"{_numbers(wanted, rooms)} Leaving: {who}.")
    staying = [one for one in occupants if one.stays]
    who = f" In memory: {'; '.join(f'{one.name} ({one.stays})' for one in staying)}." if staying else ""
    waits = any(_gone(room, occupants, later=True) >= wanted for room in rooms)
    return Verdict(waits=waits, text=f"{_numbers(wanted, rooms)}{who}{'' if waits else _bounds(settings)}")


def _leaving(wanted: int, room: Room, occupants: Sequence[Occupant]) -> list[str] | None:
    leave: list[str] = []
    free = room.free + sum(_bytes(one, room) for one in occupants if one.going)
    for one in sorted(occupants, key=lambda one: one.used_at):
        if free >= wanted:
            break
        if not one.stays and not one.going and one.on.get(room.node):
            leave.append(one.name)
            free += one.on[room.node]
    return leave if free >= wanted else None


def _gone(room: Room, occupants: Sequence[Occupant], *, later: bool) -> int:
    """What would be free without those that leave now, or ``later``."""
    going = [one for one in occupants if not one.stays or one.going or (later and one.later)]
    return room.free + sum(_bytes(one, room) for one in going)


def _bytes(one: Occupant, room: Room) -> int:
    """What it has there, or may have."""
    return one.on.get(room.node, 0) + one.on.get("", 0)


def _numbers(wanted: int, rooms: Sequence[Room], what: str = "It") -> str:
    room = max(rooms, key=lambda room: room.free, default=Room("", 0, 0))
    where = f" on {room.node}" if len(rooms) > 1 else ""
    free = f"{_gib(max(0, room.free))} of {_gib(room.total)} are free{where}"
    return f"{what} needs {_gib(wanted)} of memory, and {free}."


def _bounds(settings: MemoryConfig) -> str:
    """Which settings bound it, for whoever could raise them."""
    limit = settings.limit_bytes
    most = "" if limit is None else f" All models together may take {_gib(limit)} (`memory.limit_bytes`)."
    return f"{most} Reserved for jobs: {_gib(settings.spare_bytes)} (`memory.spare_bytes`)."


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"


def this_machine(config: Config, planned: int, resident: int) -> Room:
    """The room here, where replicas are planned with so many bytes and hold ``resident`` of them by now."""
    total, available = _meminfo()
    coming = max(0, planned - resident)
    free = available - config.memory.spare_bytes - coming
    if (limit := config.memory.limit_bytes) is not None:
        free, total = min(free, limit - planned), min(total, limit)
    return Room(socket.gethostname(), total, free)


def _meminfo() -> tuple[int, int]:
    """Total and available bytes, of the machine or of the container that we are in."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    with contextlib.suppress(OSError, ValueError):  # no bound, or no control groups of version 2
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        held = int((group / "memory.current").read_text()) - int(stat["inactive_file"])
        total, available = min(total, most), min(available, most - held)
    return total, available
