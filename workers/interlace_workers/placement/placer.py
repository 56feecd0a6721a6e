"""The workers' first process: places models, as records in Redis say, until SIGTERM."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path

from interlace_state import log
from interlace_state.config_file import ConfigError, load
from interlace_state.store import open_state
from interlace_state.tasks import cancelled
from interlace_workers import runtimes
from interlace_workers.placement.headstart import head_starts
from interlace_workers.placement.place import place
from interlace_workers.placement.reconcile import Reconciler
from interlace_workers.spawn import Spawned


def _say(line: str) -> None:
    print(line, flush=True)


async def _serve(config_file: Path, first: Spawned) -> None:
    config = load(config_file, os.environ)
    stop = asyncio.Event()
    runtime = asyncio.create_task(asyncio.to_thread(runtimes.load, config.runtime))
    _stop_on_signals(stop)
    with head_starts(first) as ahead:
        async with open_state(config) as state, AsyncExitStack() as stack:

            async def host() -> runtimes.Host:
                ahead.spare()
                hosting = await stack.enter_async_context((await runtime)(config, config_file, state))
                _stop_on_signals(stop)  # ray.init has put handlers of its own in place, which write a stack trace
                return hosting

            async def work() -> None:
                placements = await place(config, state, _say)
                one_machine = config.runtime == "process" or config.ray.address is None
                loop = Reconciler(config, state, ahead if one_machine else None, _say)
                await loop.adopt(placements)
                await loop.run(host())

            await _until(stop, work())


def _stop_on_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _until(stop: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Run this until it fails, or until it is to stop."""
    working, stopping = asyncio.create_task(work, name="placement"), asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        await cancelled(working, stopping)


def main(first: Spawned) -> None:
    """``first``: a zygote that has been started, for the first model."""
    parser = argparse.ArgumentParser(prog="interlace_workers", description="Host the configured models until SIGTERM.")
    parser.add_argument("--config", type=Path, required=True, help="YAML configuration")
    parser.add_argument("--first", help="a process for the first model that we inherit, as PID:CHANNEL:PIDFD")
    arguments = parser.parse_args()
    os.umask(0o077)  # a Ray of our own leaves its token in a file
    log.configure()
    try:
        asyncio.run(_serve(arguments.config, first))
    except ConfigError as error:
        sys.exit(str(error))
