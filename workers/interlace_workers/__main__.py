"""``python -m interlace_workers --config FILE``: host the configured models until SIGTERM."""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from interlace_state import log
from interlace_state.config_file import ConfigError, load
from interlace_state.store import open_state
from interlace_workers import runtimes
from interlace_workers.placement import place


def _say(line: str) -> None:
    print(line, flush=True)


async def _serve(config_file: Path) -> None:
    config = load(config_file, os.environ)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runtime = asyncio.create_task(asyncio.to_thread(runtimes.load, config.runtime))
    async with open_state(config) as state:
        placements = await place(config, state, _say)
        host = await runtime
        await host(config, config_file, state, placements, stop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML configuration")
    arguments = parser.parse_args()
    os.umask(0o077)  # a Ray of our own leaves its token in a file
    log.configure()
    try:
        asyncio.run(_serve(arguments.config))
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
