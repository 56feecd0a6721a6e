"""Replicas as plain child processes: as many as shall run, started again when they end."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from interlace.protocol.model import ModelKey
from interlace_state import log
from interlace_state.config import Config
from interlace_state.store import State
from interlace_workers.placement.memory import Room, this_machine
from interlace_workers.placement.place import Placement

#: A replica that could not load its model exits with this code. Where there was no other, the placement loop gives the
#: model up and stops it; else it is started again, but not soon.
LOAD_FAILED = 3
_FIRST_PAUSE = 0.5  # seconds
_LONGEST_PAUSE = 30.0  # seconds
_STEADY = 10.0  # seconds after which a replica's end is not one of a row


@asynccontextmanager
async def hosting(config: Config, file: Path, state: State) -> AsyncIterator["ProcessHost"]:
    """Host replicas while the block runs, then let them end."""
    host = ProcessHost(config, file)
    try:
        yield host
    finally:
        await host.close()


class ProcessHost:
    """The pools of all models."""

    def __init__(self, config: Config, file: Path) -> None:
        self._config = config
        self._file = file
        self._pools: dict[str, _Pool] = {}

    async def keep(self, wanted: Sequence[tuple[Placement, int]]) -> None:
        for placement, count in wanted:
            pool = self._pools.get(placement.key.slug)
            if pool is None:
                pool = self._pools[placement.key.slug] = _Pool(self._config, self._file)
            pool.keep(placement, count)

    async def live(self, key: ModelKey) -> int:
        pool = self._pools.get(key.slug)
        return 0 if pool is None else pool.live

    async def lacking(self, placement: Placement) -> str:
        return ""

    async def drop(self, key: ModelKey) -> None:
        if (pool := self._pools.pop(key.slug, None)) is not None:
            await pool.close()

    async def rooms(self, planned: int, resident: int) -> Sequence[Room]:
        return [this_machine(self._config, planned, resident)]

    async def close(self) -> None:
        """Stop all, and let running jobs end."""
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))


@dataclass
class _Supervised:
    name: str
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    #: Whether it has ended, and is started again after a while.
    pauses: bool = False
    task: "asyncio.Task[None]" = field(init=False)


class _Pool:
    """The replicas of one model."""

    def __init__(self, config: Config, file: Path) -> None:
        self._config = config
        self._file = file
        #: By number; those that are told to stop are here until they have ended.
        self._replicas: dict[int, _Supervised] = {}

    @property
    def live(self) -> int:
        return len(self._replicas)

    def keep(self, placement: Placement, count: int) -> None:
        """Have so many replicas run, now and later."""
        kept = [replica for replica in self._replicas.values() if not replica.stop.is_set()]
        for _ in range(count - len(kept)):
            self._start(placement)
        kept.sort(key=lambda replica: replica.pauses)  # what does not run goes first
        for replica in kept[count:]:
            replica.stop.set()

    async def close(self) -> None:
        """Stop all, and let running jobs end."""
        replicas = list(self._replicas.values())
        for replica in replicas:
            replica.stop.set()
        await asyncio.gather(*(replica.task for replica in replicas))

    def _start(self, placement: Placement) -> None:
        number = next(number for number in range(len(self._replicas) + 1) if number not in self._replicas)
        replica = self._replicas[number] = _Supervised(f"{placement.key.slug}-{number}")
        replica.task = asyncio.create_task(self._supervise(placement, replica), name=f"supervise {replica.name}")
        replica.task.add_done_callback(lambda _: self._replicas.pop(number))

    async def _supervise(self, placement: Placement, replica: _Supervised) -> None:
        command = [sys.executable, "-m", "interlace_workers.runtimes.replica_process"]
        command += ["--config", str(self._file), "--model", placement.model.model_dump_json(), "--name", replica.name]
        command += ["--key", placement.key.canonical, "--ahead", placement.ahead]
        command += ["--share", placement.share]
        pause = _FIRST_PAUSE
        while not replica.stop.is_set():
            started, code = time.monotonic(), None
            try:
                process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
                code = await _until(process, replica.stop, self._config.gateway.drain_seconds)
                end = f"ended with code {code}"
            except OSError as error:  # no memory for it, or no process, or no file descriptor
                end = f"could not be started: {error}"
            if replica.stop.is_set():
                return
            if code == LOAD_FAILED:
                pause = _LONGEST_PAUSE
            elif time.monotonic() - started > _STEADY:
                pause = _FIRST_PAUSE
            log.warning("replica_ended", replica=replica.name, code=code, end=end, pause_seconds=pause)
            print(f"replica {replica.name} {end}; it starts again in {pause:g} s if it is wanted then", flush=True)
            replica.pauses = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(replica.stop.wait(), pause)
            replica.pauses = False
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
