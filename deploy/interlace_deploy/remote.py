"""The server that a command asks over HTTP: which one, with which key."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interlace import Client, Unreachable
from interlace.protocol.errors import InterlaceError
from interlace_deploy.address import reachable
from interlace_deploy.problems import CommandProblem, NotRunning, UsageProblem
from interlace_deploy.rundir import RunDir
from interlace_deploy.settings import read


@contextmanager
def client(arguments: argparse.Namespace) -> Iterator[Client]:
    """A client of the server that is meant. What goes wrong with it is said as a problem of the command."""
    try:
        with Client(_url(arguments), _key(arguments.key_file)) as client:
            yield client
    except Unreachable as error:
        raise NotRunning(str(error)) from None
    except InterlaceError as error:
        hint = " Here, --key-file FILE names a file with the key, too." if error.http_status == 401 else ""
        raise CommandProblem(f"{error}{hint}") from None


def _url(arguments: argparse.Namespace) -> str:
    """What was typed goes before NDIF_HOST, and that before the server that runs on this machine."""
    named = arguments.url or (None if arguments.config else os.environ.get("NDIF_HOST"))
    if named:
        if not named.startswith(("http://", "https://")):
            raise UsageProblem(f"The server's URL is {named!r}; expected http://HOST:PORT or https://HOST.")
        return str(named)
    config = read(arguments.config, os.environ)
    running = RunDir(config.state_dir).running()
    if running is not None and running.url is None:
        raise NotRunning(f"Interlace is starting (process {running.pid}); its lines are in {config.state_dir}/logs.")
    return running.url if running and running.url else reachable(config.gateway.host, config.gateway.port)


def _key(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"--key-file {file}: {getattr(error, 'strerror', None) or 'no text'}") from None
