"""Which server a command asks: `--url`, `--config`, `$NDIF_HOST`, else the one that runs here; in that order."""

import argparse
import os
from dataclasses import dataclass

from interlace_deploy.address import reachable
from interlace_deploy.parts.rundir import RunDir, Running
from interlace_deploy.problems import NotRunning, UsageProblem
from interlace_deploy.settings import read
from interlace_state.config import Config


@dataclass(frozen=True)
class Target:
    """A server."""

    url: str
    #: What it is configured as; None where only its URL is known.
    config: Config | None = None
    #: What runs on this machine with that configuration.
    running: Running | None = None


def target(arguments: argparse.Namespace) -> Target:
    """The server that is meant. Raises UsageProblem, and NotRunning while it starts."""
    named = arguments.url or (None if arguments.config else os.environ.get("NDIF_HOST"))
    if named:
        if not named.startswith(("http://", "https://")):
            raise UsageProblem(f"The server's URL is {named!r}; expected http://HOST:PORT or https://HOST.")
        return Target(named)
    config = read(arguments.config, os.environ)
    running = RunDir(config.state_dir).running()
    if running is not None and running.url is None:
        raise NotRunning(f"Interlace is starting (process {running.pid}); its lines are in {config.state_dir}/logs.")
    url = running.url if running and running.url else reachable(config.gateway.host, config.gateway.port)
    return Target(url, config, running)
