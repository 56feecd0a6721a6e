"""`interlace keys`: API keys, in the Redis of a running Interlace or of one that is not running yet."""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from interlace.protocol.ids import NAME, TAKES
from interlace_deploy.meeting import with_state
from interlace_deploy.problems import CommandProblem, UsageProblem
from interlace_deploy.screen import show_table, utc
from interlace_deploy.settings import mint_command
from interlace_state.config import Config
from interlace_state.store import State
from interlace_state.tenants import ApiKey, KeyEnded

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def create(arguments: argparse.Namespace) -> int:
    """Print a new key's secret, alone, on stdout; what it is for on stderr."""
    if not re.fullmatch(NAME, arguments.tenant):
        raise UsageProblem(f"--tenant {arguments.tenant!r}: expected {TAKES[f'^{NAME}$']}")
    expires = _moment(arguments.expires) if arguments.expires else None

    async def ask(state: State, config: Config) -> str:
        key, secret = await state.tenants.mint(arguments.tenant, arguments.role, arguments.models, expires)
        state.audit.write("key created", key=key.id, tenant=key.tenant, role=key.role)
        print(f"key {key.id} of {key.tenant} ({key.role}); it is not shown again:", file=sys.stderr)
        return secret

    print(with_state(arguments, ask))
    return 0


def list_(arguments: argparse.Namespace) -> int:
    """Every key that is not revoked."""
    keys = with_state(arguments, lambda state, _: state.tenants.all())
    if arguments.json:
        print(json.dumps([key.model_dump() for key in keys], indent=2))
        return 0
    rows = [
        (key.id, key.tenant, key.role, ", ".join(key.models or ("all",)), _day(key.created), _day(key.expires))
        for key in keys
    ]
    show_table(("id", "tenant", "role", "models", "made, UTC", "ends, UTC"), rows)
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    """End a key at once; say who may enter if it was the last one that worked."""

    async def ask(state: State, config: Config) -> str:
        if not await state.tenants.revoke(arguments.id):
            raise _unknown(arguments.id)
        state.audit.write("key revoked", key=arguments.id)
        return _left(await state.tenants.all(), config, mint_command(arguments.config))

    if left := with_state(arguments, ask):
        print(left, file=sys.stderr)
    return 0


def _left(keys: Sequence[ApiKey], config: Config, mint: str) -> str:
    """Who may enter with these keys, where that is not simply whoever has one."""
    if any(key.is_live() for key in keys):
        return ""
    if keys:
        return f"Every key that is left has ended: nobody can enter until one is made, with: {mint}"
    if config.exposed:
        return f"That was the last key: nobody can enter until one is made, with: {mint}"
    return "That was the last key: whoever is on this machine may use the server without one again, as its admin."


def rotate(arguments: argparse.Namespace) -> int:
    """Print the secret of a key that takes another's place."""
    overlap = _seconds(arguments.overlap)

    async def ask(state: State, config: Config) -> str:
        try:
            made = await state.tenants.rotate(arguments.id, overlap)
        except KeyEnded as error:
            raise CommandProblem(f"{error} For another one: {mint_command(arguments.config)}") from None
        if made is None:
            raise _unknown(arguments.id)
        state.audit.write("key rotated", key=arguments.id, new=made[0].id)
        print(f"key {made[0].id}; {arguments.id} works for {arguments.overlap} more:", file=sys.stderr)
        return made[1]

    print(with_state(arguments, ask))
    return 0


def _unknown(key_id: str) -> CommandProblem:
    return CommandProblem(f"There is no key {key_id}; `interlace keys list` shows them.")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise UsageProblem(f"{text!r}: expected a time such as 90m, 12h or 30d")
    return int(match[1]) * _UNITS[match[2]]


def _moment(text: str) -> float:
    """Unix time of a date, in UTC where it names no zone, or of so much time from now."""
    try:
        date = datetime.fromisoformat(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        return time.time() + _seconds(text)


def _day(moment: float | None) -> str:
    return "never" if moment is None else utc(moment)
