"""What the lake knows beside artifacts' manifests: models that were hosted, jobs that ran, what was deleted, tags.

The truth is in the file store, ``lake/{shelf}/{id}.json``; a hash in Redis for each shelf is made from it.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from interlace.protocol.artifact import Artifact, ArtifactKind, Base, Lineage
from interlace.protocol.lake import Visibility
from interlace.protocol.model import ModelKey
from interlace_state.files import Files
from interlace_state.keys import Keys

#: Of a checkpoint's configuration, what is told of a hosted model.
_TOLD = ("architectures", "hidden_size", "model_type", "num_hidden_layers", "vocab_size")
NO_COMMIT = "0" * 40
_FOLDER = "lake"
_BATCH = 100  # files


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelRecord(_Record):
    """A model that is or was hosted, at one commit."""

    id: str
    key: ModelKey
    commit: str
    dtype: str
    #: Of its configuration.
    facts: dict[str, Any] = Field(default_factory=dict)
    n_params: int | None = None
    size_bytes: int | None = None
    #: Unix time.
    first_seen: float

    @property
    def architecture(self) -> str | None:
        said = self.facts.get("model_type")
        return said if isinstance(said, str) else None


class Heritage(_Record):
    """An edge that a job has found in weights."""

    #: `artifact:ID...`, or `model` for the hosted model that it ran on.
    parent: str = Field(max_length=256)
    child: str = Field(max_length=256)
    #: 0 to 1: how much nearer than the runner-up.
    margin: float = Field(ge=0, le=1)


class RunRecord(_Record):
    """A method's job that has ended: what it was given, measured and made."""

    id: str
    tenant: str
    creator: str | None = None
    ended: float
    status: str
    lineage: Lineage
    #: Ids of artifacts.
    made: tuple[str, ...] = ()
    heritage: tuple[Heritage, ...] = ()


class Tombstone(_Record):
    """What stays of an artifact that was deleted: where it stood, and nothing that it held or was called."""

    id: str
    hash: str
    kind: ArtifactKind
    tenant: str
    creator: str | None = None
    visibility: Visibility
    created: float
    deleted: float
    base: Base | None = None
    method: str | None = None
    job: str | None = None
    #: Key and commit of the model that it was made on.
    model: str | None = None
    commit: str | None = None
    parents: tuple[str, ...] = ()

    @classmethod
    def of(cls, artifact: Artifact, deleted: float) -> "Tombstone":
        lineage = artifact.lineage
        fields = artifact.model_dump(include=set(cls.model_fields) - {"base"})
        if lineage is not None:
            fields |= {
                "method": lineage.method,
                "job": lineage.job,
                "model": lineage.model,
                "commit": lineage.commit,
                "parents": lineage.parents,
            }
        return cls(**fields, base=artifact.base, deleted=deleted)


def model_id(canonical: str, commit: str) -> str:
    """The id of a hosted model: of its key and its commit."""
    return hashlib.sha256(f"{canonical}@{commit}".encode()).hexdigest()[:16]


def told(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a checkpoint's configuration the lake tells."""
    return {name: config[name] for name in _TOLD if isinstance(config.get(name), int | str | list)}


T = TypeVar("T", bound=BaseModel)


def batched(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """So many at a time as are read from files in a moment."""
    return (names[first : first + _BATCH] for first in range(0, len(names), _BATCH))


async def as_it_is(redis: Redis, version: str, reindex: Callable[[Pipeline], Awaitable[int]]) -> int:
    """Have the index follow files, once more where anything of the lake changed between the look and the writing.

    That is enough, for whoever changes a file writes the index after it, and counts ``version`` up with that.
    """
    return int(await redis.transaction(reindex, version, value_from_callable=True))


class Shelf(Generic[T]):
    """Records of one kind, by id. An id is made of letters, digits, dots and slashes, and no client chooses one."""

    def __init__(self, redis: Redis, keys: Keys, files: Files, name: str, kind: type[T]) -> None:
        self._redis = redis
        self._version = keys.lake_version
        self._files = files
        self._hash = keys.lake(name)
        self._folder = f"{_FOLDER}/{name}"
        self._kind = kind

    async def put(self, record_id: str, record: T) -> None:
        """Keep a record, in place of one that has its id."""
        data = record.model_dump_json()
        await self._files.put(f"{self._folder}/{record_id}.json", data.encode())
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._hash, record_id, data)
            pipe.incr(self._version)
            await pipe.execute()

    async def get(self, record_id: str) -> T | None:
        """A record; where the index has lost it, out of its file."""
        data = await self._redis.hget(self._hash, record_id)
        return await self._kept(f"{record_id}.json") if data is None else self._kind.model_validate_json(data)

    async def remove(self, record_id: str) -> None:
        await self._files.delete(f"{self._folder}/{record_id}.json")
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(self._hash, record_id)
            pipe.incr(self._version)
            await pipe.execute()

    async def all(self) -> dict[str, T]:
        """Every record, by id."""
        found = await self._redis.hgetall(self._hash)
        return await asyncio.to_thread(self._parsed, found)

    def _parsed(self, found: Mapping[bytes, bytes]) -> dict[str, T]:
        return {key.decode(): self._kind.model_validate_json(data) for key, data in sorted(found.items())}

    async def rebuild(self) -> int:
        """Make the index from the files, and from nothing else; returns how many there are.

        What is put or removed meanwhile is so afterwards.
        """
        ids = {key.decode() for key in await self._redis.hkeys(self._hash)}
        ids |= {name.removesuffix(".json") for name in await self._files.names(self._folder) if name.endswith(".json")}
        found = 0
        for some in batched(sorted(ids)):
            found += await as_it_is(self._redis, self._version, partial(self._reindex, some))
        await self._redis.incr(self._version)
        return found

    async def _reindex(self, ids: Sequence[str], pipe: Pipeline) -> int:
        """Have some of the index follow the files; returns how many there are."""
        records = await asyncio.gather(*(self._kept(f"{one}.json") for one in ids))
        pipe.multi()
        for record_id, record in zip(ids, records, strict=True):
            if record is None:
                pipe.hdel(self._hash, record_id)
            else:
                pipe.hset(self._hash, record_id, record.model_dump_json())
        return sum(record is not None for record in records)

    async def _kept(self, name: str) -> T | None:
        """What a file says; None where it is not there, or cannot be right."""
        try:
            return self._kind.model_validate_json(await self._files.get(f"{self._folder}/{name}"))
        except (ValidationError, FileNotFoundError):
            return None
