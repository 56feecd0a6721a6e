"""Replicas as plain child processes, started again when they end."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from interlace_state import log
from interlace_state.config import Config
from interlace_workers.placement import Placement

#: A replica that could not load its model exits with this code and is not started again.
LOAD_FAILED = 3
_FIRST_PAUSE = 0.5  # seconds
_LONGEST_PAUSE = 30.0  # seconds
_STEADY = 10.0  # seconds after which a replica's end is not one of a row


async def host(config: Config, file: Path, placements: Sequence[Placement], stop: asyncio.Event) -> None:
    """Run every replica until ``stop``."""
    replicas = [(placement, number) for placement in placements for number in range(placement.model.replicas)]
    await asyncio.gather(*(_supervise(config, file, placement, number, stop) for placement, number in replicas))


async def _supervise(config: Config, file: Path, placement: Placement, number: int, stop: asyncio.Event) -> None:
    name = f"{placement.key.slug}-{number}"
    command = [sys.executable, "-m", "interlace_workers.runtimes.replica_process"]
    command += ["--config", str(file), "--index", str(placement.index), "--name", name]
    command += ["--key", placement.key.canonical]
    pause = _FIRST_PAUSE
    while not stop.is_set():
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
        code = await _until(process, stop, config.gateway.drain_seconds)
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
