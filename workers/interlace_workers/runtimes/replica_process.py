"""``python -m interlace_workers.runtimes.replica_process``: one replica as a process of its own.

It ends when its parent does: its standard input is a pipe whose other end the parent holds.
"""

import argparse
import asyncio
import gc
import os
import signal
import sys
from pathlib import Path

import uvloop
from redis.exceptions import RedisError

from interlace.protocol.model import ModelKey
from interlace_state import log
from interlace_state.config_file import load
from interlace_state.settings.models import ModelConfig
from interlace_state.store import open_state
from interlace_state.tracing import Tracing
from interlace_workers.executors.base import ExecutorLost, LoadFailed
from interlace_workers.placement.place import build_replica
from interlace_workers.runtimes.process import LOAD_FAILED


async def _serve(config_file: Path, model: ModelConfig, key: ModelKey, name: str, *places: str) -> int:
    config = load(config_file, os.environ)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def parent_gone() -> None:
        loop.remove_reader(sys.stdin.fileno())
        stop.set()

    loop.add_reader(sys.stdin.fileno(), parent_gone)
    async with open_state(config) as state, Tracing(config.telemetry, "interlace-worker", name) as tracing:
        try:
            replica = await build_replica(config, state, tracing, model, key, name, *places)
            await replica.serve(stop)
        except LoadFailed as error:
            log.warning("load_failed", error=str(error))
            return LOAD_FAILED
        except (ExecutorLost, RedisError) as error:
            log.warning("stopped", error=str(error))
            return 1
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--model", required=True, help="what to host, as JSON")
    parser.add_argument("--key", required=True, help="the model's key")
    parser.add_argument("--ahead", default="", help="where a process may be that loads the model already")
    parser.add_argument("--share", default="", help="where replicas of the model meet that share its weights")
    parser.add_argument("--name", required=True, help="the replica's name")
    arguments = parser.parse_args()
    key = ModelKey.parse(arguments.key)
    log.configure(model=str(key), replica=arguments.name)
    model = ModelConfig.model_validate_json(arguments.model)
    gc.freeze()  # what there is stays: no collection amid a job shall walk it
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        places = arguments.ahead, arguments.share
        sys.exit(runner.run(_serve(arguments.config, model, key, arguments.name, *places)))


if __name__ == "__main__":
    main()
