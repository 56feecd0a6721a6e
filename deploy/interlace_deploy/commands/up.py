"""`interlace up`: start everything, stay until Ctrl-C, stop everything."""

import argparse
import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from interlace_deploy.address import hidden, reachable
from interlace_deploy.commands import detach
from interlace_deploy.parts.ahead import Ahead
from interlace_deploy.parts.ray_access import access
from interlace_deploy.parts.rundir import RunDir
from interlace_deploy.parts.service import Service
from interlace_deploy.problems import UsageProblem
from interlace_deploy.screen import Screen
from interlace_deploy.settings import DEFAULT_MODEL, read
from interlace_state.config import Config

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(arguments: argparse.Namespace, ahead: Ahead | None = None) -> int:
    """The command. Raises CommandProblem."""
    screen = Screen()
    config = configuration(arguments, os.environ)
    if arguments.detach:
        return detach.up(config, arguments.words, screen)
    if config.redis.url is not None:
        screen.say(f"redis      {hidden(config.redis.url)}")
    asyncio.run(_serve(config, screen, arguments.config, ahead))
    return 0


def configuration(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """What to start: the configuration, the command line over it, and the default model where none is named."""
    overrides: dict[str, Any] = {}
    if arguments.model:
        task = {} if arguments.task is None else {"task": arguments.task}
        overrides["models"] = [{"source": source, **task} for source in arguments.model]
    elif arguments.task is not None:
        raise UsageProblem("`--task` is about `--model`, which is missing. In a configuration set `models[].task`.")
    for key, value in (
        ("gateway.host", arguments.host),
        ("gateway.port", arguments.port),
        ("runtime", arguments.runtime),
    ):
        if value is not None:
            overrides[key] = value
    config = read(arguments.config, environ, overrides)
    if not config.models and not config.on_demand.allow:
        overrides["models"] = [{"source": DEFAULT_MODEL}]
    if config.redis.url is None and (url := environ.get("REDIS_URL")):
        environ = {**environ, "INTERLACE_REDIS__URL": url}
    return read(arguments.config, environ, overrides)


async def _serve(config: Config, screen: Screen, file: Path | None, ahead: Ahead | None) -> None:
    run_dir = RunDir(config.state_dir)
    with run_dir.claim():
        service = Service(config, run_dir, screen, os.environ, file, ahead)
        asked = _stop_on_signals(service, screen)
        if config.isolation_level == "none":
            screen.warn("`isolation: none`: jobs run unprotected, as this account. Only for people that you trust.")
        for model in config.models:
            if model.executor == "resident":
                names = ", ".join(model.trusted)
                screen.warn(f"{model.source} is resident: the jobs of {names} run unprotected, as this account.")
        if warning := access(config, os.environ).warning:
            screen.warn(warning)
        try:
            url = await service.start()
            run_dir.record(url)
            # In one piece: whoever waits for the first line finds the others there, too.
            print("\n".join([f"ready {url}", *for_clients(config, url, keyed=service.keyed)]), flush=True)
            await service.watch()
        except asyncio.CancelledError:
            if not asked.is_set():
                raise
        finally:
            await service.stop()
        screen.say("stopped")


def for_clients(config: Config, url: str, *, keyed: bool) -> list[str]:
    """What to paste where stock nnsight runs: for a notebook, and for a shell."""
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or 80
    base = (config.gateway.public_url or reachable(host, port)).rstrip("/")
    lines = [
        f'  in a notebook: import os; os.environ.update(NDIF_HOST="{base}", HF_ENDPOINT="{base}/hf")',
        f"  in a shell:    export NDIF_HOST={base} HF_ENDPOINT={base}/hf",
    ]
    if config.page.enabled:
        lines.append(f"  in a browser:  {base}/")
    if config.gateway.public_url is None and host in ("0.0.0.0", "::"):
        lines.append(f"  on other machines, with this one's name in place of {urlsplit(base).hostname}")
    if keyed:
        lines.append("  and NDIF_API_KEY, which everybody needs here")
    return lines


def _stop_on_signals(service: Service, screen: Screen) -> asyncio.Event:
    """The first signal ends this task, which then stops all parts in order; the next one kills them."""
    loop, task, asked = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()

    def heed(number: int) -> None:
        if asked.is_set() or service.stopping or task is None:
            service.kill()
            return
        asked.set()
        if number == signal.SIGINT:
            screen.say("Ctrl-C again ends everything at once")
        task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, heed, number)
    return asked
