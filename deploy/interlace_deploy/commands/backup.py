"""`interlace backup` and `interlace restore`: Redis and the store, into a folder and back."""

import argparse
import os
import sys
from collections.abc import Awaitable, Callable

from interlace_deploy.meeting import with_state
from interlace_deploy.parts.rundir import RunDir, account
from interlace_deploy.problems import CommandProblem
from interlace_deploy.screen import utc
from interlace_deploy.settings import read
from interlace_state import backup
from interlace_state.backup import BackupError, Manifest, NothingThere
from interlace_state.config import Config
from interlace_state.files import Files
from interlace_state.store import State


def save(arguments: argparse.Namespace) -> int:
    """The command `backup`, whether Interlace runs or not."""

    async def ask(state: State, config: Config) -> Manifest:
        try:
            return await backup.save(state.redis, config.redis.prefix, Files(config.store_url), arguments.folder)
        except NothingThere as error:
            raise CommandProblem(
                f"{error} This was asked of the state in {config.state_dir}, as the account {account(os.geteuid())}: "
                "name the service's own with `--config`, and type it as the account that the service runs as."
            ) from None

    manifest = _done(arguments, ask)
    print(f"{arguments.folder}: {_described(manifest)}")
    if not manifest.keys:
        print("interlace: no key of Redis is in it: is this the service's `redis.url`?", file=sys.stderr)
    return 0


def load(arguments: argparse.Namespace) -> int:
    """The command `restore`, into a Redis that holds nothing of ours. Raises CommandProblem while Interlace runs."""
    running = RunDir(read(arguments.config, os.environ).state_dir).running()
    if running is not None:
        raise CommandProblem(f"Interlace runs here (process {running.pid}): stop it first, with `interlace down`.")

    async def ask(state: State, config: Config) -> Manifest:
        return await backup.load(state.redis, config.redis.prefix, Files(config.store_url), arguments.folder)

    print(f"restored {_described(_done(arguments, ask))}")
    return 0


def _done(arguments: argparse.Namespace, ask: Callable[[State, Config], Awaitable[Manifest]]) -> Manifest:
    try:
        return with_state(arguments, ask)
    except (BackupError, OSError) as error:
        raise CommandProblem(str(error)) from None


def _described(manifest: Manifest) -> str:
    size = sum(manifest.files.values()) / (1 << 20)
    return f"{manifest.keys} keys and {len(manifest.files)} files ({size:.1f} MiB) of {utc(manifest.made)} UTC"
