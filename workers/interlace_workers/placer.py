"""The workers' first process: places the models, and has a runtime host them until SIGTERM."""

import argparse
import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from interlace_state import log
from interlace_state.config_file import ConfigError, load
from interlace_state.store import open_state
from interlace_workers import runtimes
from interlace_workers.headstart import HeadStarts, head_starts
from interlace_workers.placement import Placement, place
from interlace_workers.spawn import Spawned


def _say(line: str) -> None:
    print(line, flush=True)


async def _serve(config_file: Path, first: Spawned) -> None:
    config = load(config_file, os.environ)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runtime = asyncio.create_task(asyncio.to_thread(runtimes.load, config.runtime))
    with head_starts(first) as ahead:
        async with open_state(config) as state:
            placements = [_started(placement, ahead) for placement in await place(config, state, _say)]
            ahead.spare()
            host = await runtime
            await host(config, config_file, state, placements, stop)


def _started(placement: Placement, ahead: HeadStarts) -> Placement:
    """The placement, and its first replica's process on its way, if a replica starts now."""
    if not placement.model.first_replicas:
        return placement
    return replace(placement, ahead=str(ahead.start(placement.load)))


def main(first: Spawned) -> None:
    """``first``: a zygote that has been started, for the first model."""
    parser = argparse.ArgumentParser(prog="interlace_workers", description="Host the configured models until SIGTERM.")
    parser.add_argument("--config", type=Path, required=True, help="YAML configuration")
    arguments = parser.parse_args()
    os.umask(0o077)  # a Ray of our own leaves its token in a file
    log.configure()
    try:
        asyncio.run(_serve(arguments.config, first))
    except ConfigError as error:
        sys.exit(str(error))
