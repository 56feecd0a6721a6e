"""A backup: all that lies in Redis below the prefix, and all files of the store, in a folder; and the way back.

| in the folder   | what                                                                                            |
|-----------------|-------------------------------------------------------------------------------------------------|
| `redis.jsonl`   | a line for each key, of one moment: name without prefix, milliseconds it lives or -1, its DUMP  |
| `store/NAME`    | the store's files                                                                               |
| `manifest.json` | how many keys, each file's bytes, who made it and when; written last                            |

Files are copied, then Redis, then the files that have come meanwhile: so each job of Redis finds its files, but for one
that came and ended while files were copied. It holds the hashes of API keys and the key that signs result links.
"""

import asyncio
import base64
import json
import os
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from interlace_state import owner
from interlace_state.files import Files
from interlace_state.scripts import script

_FORMAT = 1
_MANIFEST, _REDIS, _STORE = "manifest.json", "redis.jsonl", "store"
_AT_ONCE = 500  # keys that are restored by one round trip


class BackupError(Exception):
    """It cannot be made or read; the message says why and what would be right."""


class NothingThere(BackupError):
    """There is nothing to back up: whoever asks has likely asked the wrong place."""


class Manifest(BaseModel):
    """What a backup says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    #: Of Interlace and of the Redis that it was made from.
    interlace: str
    redis: str
    #: Unix time of the moment that the keys are of.
    made: float
    keys: int
    #: Name -> bytes.
    files: dict[str, int]


async def save(redis: Redis, prefix: str, files: Files, folder: Path) -> Manifest:
    """Make a backup in a folder that is new or empty. Raises BackupError, OSError, RedisError.

    NothingThere where there is neither a key nor a file.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty: a backup takes a folder of its own.")
    folder.chmod(0o700)
    copied = await _copy_out(files, folder / _STORE, {})
    made = time.time()
    found = await redis.register_script(script("dump"))(keys=[], args=[prefix, _below(prefix)])
    copied = await _copy_out(files, folder / _STORE, copied)
    if not found and not copied:
        raise NothingThere(f"There is nothing to back up: no key below {prefix!r} in Redis, and no file in the store.")
    keys = [found[at : at + 3] for at in range(0, len(found), 3)]
    await asyncio.to_thread(_write, folder / _REDIS, "".join(map(_line, keys)))
    server = str((await redis.info("server"))["redis_version"])
    manifest = Manifest(
        format=_FORMAT, interlace=version("interlace"), redis=server, made=made, keys=len(keys), files=copied
    )
    await asyncio.to_thread(_write, folder / _MANIFEST, manifest.model_dump_json(indent=2))
    return manifest


async def load(redis: Redis, prefix: str, files: Files, folder: Path) -> Manifest:
    """Put a backup back, below a prefix that holds nothing yet; what had time left to live has as much again.

    Raises BackupError before anything is changed, or if this Redis cannot read what another one wrote; ConfigError
    where the store is another service's.
    """
    manifest = await asyncio.to_thread(_read, folder)
    lines = await asyncio.to_thread((folder / _REDIS).read_text)
    keys = [json.loads(line) for line in lines.splitlines()]
    if len(keys) != manifest.keys:
        raise BackupError(f"{folder / _REDIS} has {len(keys)} keys, of {manifest.keys}: it is not whole.")
    async for _ in redis.scan_iter(match=_below(prefix), count=1000):
        raise BackupError(
            f"This Redis holds keys below {prefix!r} already: stop all gateways and workers, and empty it first "
            "(or restore below another `redis.prefix`)."
        )
    await owner.claim(files, prefix)
    for name in manifest.files:
        await _copy_in(files, folder / _STORE / name, name)
    for first in range(0, len(keys), _AT_ONCE):
        await _restore(redis, prefix, keys[first : first + _AT_ONCE], manifest)
    return manifest


async def _restore(redis: Redis, prefix: str, keys: list[list[Any]], manifest: Manifest) -> None:
    pipeline = redis.pipeline(transaction=False)
    for name, lives, value in keys:
        pipeline.restore(f"{prefix}{base64.b64decode(name).decode()}", max(0, lives), base64.b64decode(value))
    try:
        await pipeline.execute()
    except ResponseError as error:
        raise BackupError(
            f"This Redis cannot read what Redis {manifest.redis} wrote ({error}): take that version or a newer one."
        ) from None


def _below(prefix: str) -> str:
    """The pattern of all keys that begin with it."""
    return re.sub(r"([\[\]*?\\])", r"\\\1", prefix) + "*"


def _line(key: list[Any]) -> str:
    name, lives, value = key
    return json.dumps([base64.b64encode(name).decode(), lives, base64.b64encode(value).decode()]) + "\n"


async def _copy_out(files: Files, folder: Path, had: dict[str, int]) -> dict[str, int]:
    """Copy the files that the folder has not had; name -> bytes of all. One that is removed meanwhile is left out."""
    sizes = dict(had)
    for name in await files.everything():
        if name in had or name == owner.NAME:
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            size = await files.size(name)
            with open(path, "wb", opener=_private) as copy:
                async for piece in files.stream(name, 0, size):
                    await asyncio.to_thread(copy.write, piece)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
        else:
            sizes[name] = size
    return sizes


async def _copy_in(files: Files, path: Path, name: str) -> None:
    staged = await asyncio.to_thread(files.stage)
    await asyncio.to_thread(_copy_blocking, path, staged)
    await files.adopt(staged, name)


def _copy_blocking(path: Path, staged: Path) -> None:
    with path.open("rb") as source, staged.open("wb") as copy:
        while piece := source.read(1 << 20):
            copy.write(piece)


def _read(folder: Path) -> Manifest:
    """The manifest of a backup that is whole. Raises BackupError."""
    try:
        manifest = Manifest.model_validate_json((folder / _MANIFEST).read_text())
    except FileNotFoundError:
        raise BackupError(f"{folder} is no backup, or one that was not finished: it has no {_MANIFEST}.") from None
    except ValidationError as error:
        raise BackupError(f"{folder / _MANIFEST} is not what a backup says of itself: {error}") from None
    if manifest.format != _FORMAT:
        raise BackupError(f"{folder} is of format {manifest.format}; this Interlace reads {_FORMAT}.")
    for name, size in manifest.files.items():
        path = folder / _STORE / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise BackupError(f"{folder / _MANIFEST} names {name!r}, which is no file of a store.")
        if not path.is_file() or path.stat().st_size != size:
            raise BackupError(f"{path} should be there, with {size} bytes: the backup is not whole.")
    return manifest


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8", opener=_private) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
