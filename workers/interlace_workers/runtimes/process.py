"""Replicas as plain child processes: as many as shall run, started again when they end."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import RedisError

from interlace_state import log
from interlace_state.config import Autoscale, Config
from interlace_state.store import State
from interlace_state.tasks import cancelled
from interlace_workers import scaling
from interlace_workers.placement import Placement

#: A replica that could not load its model exits with this code and is not started again.
LOAD_FAILED = 3
_FIRST_PAUSE = 0.5  # seconds
_LONGEST_PAUSE = 30.0  # seconds
_STEADY = 10.0  # seconds after which a replica's end is not one of a row


async def host(config: Config, file: Path, state: State, placements: Sequence[Placement], stop: asyncio.Event) -> None:
    """Run every replica until ``stop``."""
    await asyncio.gather(*(_Pool(config, file, state, placement).run(stop) for placement in placements))


@dataclass(frozen=True)
class _Supervised:
    name: str
    stop: asyncio.Event
    task: "asyncio.Task[None]"


class _Pool:
    """The replicas of one model."""

    def __init__(self, config: Config, file: Path, state: State, placement: Placement) -> None:
        self._config = config
        self._file = file
        self._state = state
        self._placement = placement
        #: By number; those that are told to stop are here until they have ended.
        self._replicas: dict[int, _Supervised] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Keep as many replicas as shall run until ``stop``, then let them end."""
        model = self._placement.model
        keeping = asyncio.create_task(self._scale(model.autoscale) if model.autoscale else self._keep(model.replicas))
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                keeping.result()
        finally:
            await cancelled(keeping, stopping)
            replicas = list(self._replicas.values())
            for replica in replicas:
                replica.stop.set()
            await asyncio.gather(*(replica.task for replica in replicas))

    async def _keep(self, count: int) -> None:
        """So many replicas; returns when none of them can load its model."""
        for _ in range(count):
            self._start()
        await asyncio.wait([replica.task for replica in self._replicas.values()])

    async def _scale(self, settings: Autoscale) -> None:
        """As many replicas as the queue needs, now and later."""
        async for wanted in scaling.follow(self._state, self._placement.key, settings):
            kept = [number for number, replica in self._replicas.items() if not replica.stop.is_set()]
            for _ in range(wanted - len(kept)):
                self._start()
            for number in (await self._idle_first(kept))[: max(0, len(kept) - wanted)]:
                self._replicas[number].stop.set()  # its jobs end, or are given back
                if self._replicas[number].task.done():
                    self._forget(number)

    async def _idle_first(self, numbers: list[int]) -> list[int]:
        """These replicas, those with the fewest running jobs first, and of equals the youngest."""
        running: dict[str, int] = {}
        with contextlib.suppress(RedisError, OSError):
            hosted = await self._state.models.find(self._placement.key)
            running = {replica.id: replica.running for replica in hosted.replicas}
        return sorted(numbers, key=lambda number: (running.get(self._replicas[number].name, 0), -number))

    def _start(self) -> None:
        number = next(number for number in range(len(self._replicas) + 1) if number not in self._replicas)
        name, stop = f"{self._placement.key.slug}-{number}", asyncio.Event()
        task = asyncio.create_task(self._supervise(name, stop), name=f"supervise {name}")
        self._replicas[number] = _Supervised(name, stop, task)
        task.add_done_callback(lambda _: self._forget(number))

    def _forget(self, number: int) -> None:
        """A replica that was told to stop has ended; one that could not load its model keeps its place."""
        if self._replicas[number].stop.is_set():
            del self._replicas[number]

    async def _supervise(self, name: str, stop: asyncio.Event) -> None:
        placement = self._placement
        command = [sys.executable, "-m", "interlace_workers.runtimes.replica_process"]
        command += ["--config", str(self._file), "--index", str(placement.index), "--name", name]
        command += ["--key", placement.key.canonical, "--ahead", placement.ahead]
        pause = _FIRST_PAUSE
        while not stop.is_set():
            started = time.monotonic()
            process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
            code = await _until(process, stop, self._config.gateway.drain_seconds)
            if stop.is_set() or code == LOAD_FAILED:
                return
            if time.monotonic() - started > _STEADY:
                pause = _FIRST_PAUSE
            log.warning("replica_ended", replica=name, code=code, pause_seconds=pause)
            print(f"replica {name} ended with code {code}; starting it again in {pause:g} s", flush=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
            pause = min(_LONGEST_PAUSE, pause * 2)


async def _until(process: asyncio.subprocess.Process, stop: asyncio.Event, drain_seconds: float) -> int:
    """Wait for the process to end, or end it when ``stop`` is set."""
    stopping = asyncio.create_task(stop.wait())
    ending = asyncio.create_task(process.wait())
    try:
        await asyncio.wait([stopping, ending], return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            process.terminate()
            try:
                async with asyncio.timeout(drain_seconds + 10):
                    await asyncio.shield(ending)
            except TimeoutError:
                process.kill()
        return await ending
    finally:
        stopping.cancel()
