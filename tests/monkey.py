"""Kills a server's parts with SIGKILL, each while some job is at a chosen stage."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import running
from redis.exceptions import RedisError

from interlace.protocol.model import ModelKey
from interlace_state.keys import Keys
from interlace_state.store import State

#: A word of the command line of each part.
PARTS = {
    "gateway": "-m interlace_server",
    "placer": "-m interlace_workers --config",
    "replica": "interlace_workers.runtimes.replica_process",
    "zygote": "interlace_workers.zygote",
    "redis": "redis.sock",
}
#: Where a job can be when a part dies.
STAGES = ("received", "queued", "leased", "running", "writing", "unacknowledged")
_LOOK = 0.001  # seconds
_PATIENCE = 4.0  # seconds that a short stage is waited for, which does not come at will
#: The same for stages in which there is always some job, on whatever machine.
_LONG_STAGES, _LONG_PATIENCE = ("queued", "running"), 60.0


@dataclass
class Monkey:
    """Looks into the server's Redis and store for the moment to strike."""

    server: running.Running
    state: State
    keys: Keys
    model: ModelKey
    #: (part, stage): whether a job was seen at that stage just before.
    struck: dict[tuple[str, str], bool] = field(default_factory=dict)
    _crashed: set[str] = field(default_factory=set)

    async def strike(self, part: str, stage: str) -> None:
        """Kill a part when a job is at a stage, and wait until the part is there again."""
        deadline = time.monotonic() + (_LONG_PATIENCE if stage in _LONG_STAGES else _PATIENCE)
        seen = False
        while not seen and time.monotonic() < deadline:
            with contextlib.suppress(RedisError):  # it may be the one that comes back just now
                seen = await self._is_at(stage)
            if not seen:
                await asyncio.sleep(_LOOK)
        former = self._pids(part)
        for pid in former:
            with contextlib.suppress(ProcessLookupError):  # a zygote may have ended with its replica
                os.kill(pid, signal.SIGKILL)
        self.struck[part, stage] = seen
        try:
            await until(lambda: self._lives_again(part, former), f"{part} has not come back", 180.0)
        except AssertionError as error:
            raise AssertionError(f"{error}, former: {former}\n{await self.sight()}") from None

    async def strike_sandbox(self) -> None:
        """Kill the process of a job that runs, never of the same job twice."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(RedisError, ProcessLookupError):
                if await self._crash():
                    return
            await asyncio.sleep(_LOOK)

    async def _crash(self) -> bool:
        for job_id in await self._held():
            state = await self.state.redis.hget(self.keys.job(job_id), "state")
            spares = [pid for zygote in self._pids("zygote") for pid in _children(zygote)]
            if state == b"running" and job_id not in self._crashed and spares:
                os.kill(min(spares), signal.SIGKILL)  # the eldest: the younger one waits for the next job
                self._crashed.add(job_id)
                self.struck["sandbox", "running"] = True
                return True
        return False

    async def sight(self) -> str:
        """What there is to see of a server that stands still."""
        lines = [f"struck: {self.struck}", f"waiting and running: {await self.state.queue.length(self.model)}"]
        lines += [f"held: {await self.state.redis.hgetall(self.keys.job(job_id))}" for job_id in await self._held()]
        for process in psutil.Process(self.server.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                lines.append(
                    f"{process.pid} of {process.ppid()}, {process.status()}, {process.cpu_times()}: {line[:160]}"
                )
        return "\n".join(lines)

    async def _lives_again(self, part: str, former: list[int]) -> bool:
        return len(set(self._pids(part)) - set(former)) >= len(former)

    async def _is_at(self, stage: str) -> bool:
        store = self.server.state_dir / "store"
        if stage == "received":  # the payload is there and the job is not
            return any([not await self._exists(name) for name in _names(store / "payloads")])
        if stage == "queued":
            return await self.state.queue.length(self.model) > len(await self._held())
        for job_id in await self._held():
            job = await self.state.redis.hget(self.keys.job(job_id), "state")
            if stage == "leased":  # the word of it is written with the next, or a moment later
                if job in (b"queued", b"leased"):
                    return True
            elif stage == "running":
                if job == b"running":
                    return True
            elif stage == "unacknowledged":
                if job == b"running" and (store / "results" / job_id).exists():
                    return True
            elif job == b"running" and any(_size(store / "staging" / name) for name in _names(store / "staging")):
                return True
        return False

    async def _held(self) -> list[str]:
        leases = await self.state.redis.zrange(self.keys.leases(self.model.slug), 0, -1)
        return [job_id.decode() for job_id in leases]

    async def _exists(self, job_id: str) -> bool:
        return bool(await self.state.redis.exists(self.keys.job(job_id)))

    def _pids(self, part: str) -> list[int]:
        found = []
        for process in psutil.Process(self.server.process.pid).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
                above = process.parent()  # asked once: it may end at any moment
                parent = "" if above is None else " ".join(above.cmdline())
            except psutil.NoSuchProcess:
                continue
            # A forked child has its parent's command line, and outlives it for an instant.
            orphan = part == "zygote" and "interlace_workers" not in parent
            if PARTS[part] in line and PARTS[part] not in parent and "tether" not in line and not orphan:
                found.append(process.pid)
        return found


async def until(holds: Callable[[], Awaitable[bool]], complaint: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not await holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"{complaint} in {seconds:g} s")
        await asyncio.sleep(0.1)


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
