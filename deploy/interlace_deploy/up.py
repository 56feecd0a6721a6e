"""`interlace up`: start everything, stay until Ctrl-C, stop everything."""

import argparse
import asyncio
import os
import signal
from collections.abc import Mapping
from typing import Any

from interlace_deploy import detach
from interlace_deploy.address import hidden
from interlace_deploy.rundir import RunDir
from interlace_deploy.screen import Screen
from interlace_deploy.service import Service
from interlace_deploy.settings import DEFAULT_MODEL, read
from interlace_state.config import Config

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(arguments: argparse.Namespace) -> int:
    """The command. Raises CommandProblem."""
    screen = Screen()
    config = configuration(arguments, os.environ)
    if arguments.detach:
        return detach.up(config, arguments.words, screen)
    if config.redis.url is not None:
        screen.say(f"redis      {hidden(config.redis.url)}")
    asyncio.run(_serve(config, screen))
    return 0


def configuration(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """What to start: the configuration, the command line over it, and the default model where none is named."""
    overrides: dict[str, Any] = {}
    if arguments.model:
        overrides["models"] = [{"source": source} for source in arguments.model]
    for key, value in (
        ("gateway.host", arguments.host),
        ("gateway.port", arguments.port),
        ("runtime", arguments.runtime),
    ):
        if value is not None:
            overrides[key] = value
    config = read(arguments.config, environ, overrides)
    if not config.models:
        overrides["models"] = [{"source": DEFAULT_MODEL}]
    if config.redis.url is None and (url := environ.get("REDIS_URL")):
        environ = {**environ, "INTERLACE_REDIS__URL": url}
    return read(arguments.config, environ, overrides)


async def _serve(config: Config, screen: Screen) -> None:
    run_dir = RunDir(config.state_dir)
    with run_dir.claim():
        service = Service(config, run_dir, screen, os.environ)
        asked = _stop_on_signals(service)
        if config.isolation_level == "none":
            screen.warn("`isolation: none`: jobs run unprotected, as this account. Only for people that you trust.")
        try:
            url = await service.start()
            run_dir.record(url)
            print(f"ready {url}", flush=True)
            await service.watch()
        except asyncio.CancelledError:
            if not asked.is_set():
                raise
        finally:
            await service.stop()
        screen.say("stopped")


def _stop_on_signals(service: Service) -> asyncio.Event:
    """The first signal ends this task, which then stops all parts in order; the next one kills them."""
    loop, task, asked = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()

    def heed() -> None:
        if asked.is_set() or service.stopping or task is None:
            service.kill()
            return
        asked.set()
        task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, heed)
    return asked
