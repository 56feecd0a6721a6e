"""The catalogue: which models are hosted, how each is doing, and the small hub files that clients need."""

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from interlace.protocol.errors import UnknownModel
from interlace.protocol.hosting import ModelEvent, Moment
from interlace.protocol.model import ModelKey
from interlace_state import life
from interlace_state.files import Files
from interlace_state.keys import Keys
from interlace_state.lake.records import NO_COMMIT, ModelRecord, Shelf, model_id, told

HEARTBEAT = 5.0  # seconds between two signs of life of a replica


class ModelState(StrEnum):
    #: No replica runs, and none shall until a job comes.
    COLD = "cold"
    DEPLOYING = "deploying"
    READY = "ready"
    FAILED = "failed"


class Replica(BaseModel):
    """One replica's sign of life."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: ModelState
    pid: int
    node: str
    #: Resident bytes of the process that holds the weights.
    resident_bytes: int = 0
    #: Id of that process on ``node``, which replicas of one model may share; 0 while there is none.
    holder: int = 0
    running: int = 0
    #: Whether an operator gives it no more jobs.
    drained: bool = False


class ModelCard(BaseModel):
    """What is known of a hosted model. Written by whoever places it."""

    model_config = ConfigDict(frozen=True)

    key: ModelKey
    #: 40 hex digits that stand for the hub commit, for clients that ask our hub.
    commit: str
    dtype: str
    #: The checkpoint's config.json.
    config: dict[str, Any]
    n_params: int | None = None
    size_bytes: int | None = None
    #: Tenants whose jobs it takes, because they run unprotected; None: everybody's.
    trusted: tuple[str, ...] | None = None
    #: Why the model could not be loaded; None while it may still come.
    failure: str | None = None


class HostedModel(BaseModel):
    """A model and how it is doing."""

    model_config = ConfigDict(frozen=True)

    card: ModelCard
    state: ModelState
    replicas: tuple[Replica, ...]
    #: How many replicas shall run; None where nobody has said.
    wanted: int | None = None
    #: Whether an operator lets its jobs wait.
    paused: bool = False
    #: Where it stands in its life; None where no placement loop has said.
    moment: Moment | None = None

    @property
    def resident_bytes(self) -> int:
        """Resident bytes of the processes that hold its weights, each counted once whoever shares it."""
        held = {(one.node, one.holder or one.id): one.resident_bytes for one in self.replicas}
        return sum(held.values())


@dataclass(frozen=True)
class Recent:
    """A model that was ready when it was last read, and by what `Queue.submit` finds out whether it still is that."""

    model: HostedModel
    #: SHA-1 of its card as Redis has it, in hex.
    digest: str
    #: Id of a replica that was ready.
    replica: str


class Models:
    """The hosted models."""

    def __init__(self, redis: Redis, keys: Keys, files: Files) -> None:
        self._redis = redis
        self._keys = keys
        self._files = files
        #: By slug.
        self._recent: dict[str, Recent] = {}
        self._seen = Shelf(redis, keys, files, "models", ModelRecord)

    async def publish(self, card: ModelCard) -> None:
        """Add a model, or say something new of it. The lake remembers it, also when it is hosted no more."""
        await self._redis.hset(self._keys.models, card.key.slug, card.model_dump_json())
        if card.commit != NO_COMMIT:
            await self._remember(card)

    async def announce(self, card: ModelCard) -> None:
        """Add a model of which little is known yet; one that is there stays as it is."""
        await self._redis.hsetnx(self._keys.models, card.key.slug, card.model_dump_json())

    async def withdraw(self, key: ModelKey) -> None:
        """Take a model and its hub files out of the catalogue."""
        await self.forget_replicas(key)
        was_there = await self._redis.hdel(self._keys.models, key.slug)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.wanted(key.slug), self._keys.history(key.slug))
            pipe.hdel(self._keys.moments, key.slug)
            pipe.incr(self._keys.lake_version)
            if was_there:
                life.write(pipe, self._keys, ModelEvent(model=key.repo_id, slug=key.slug))
            await pipe.execute()
        await self._files.delete_folder(f"hub/{key.slug}")

    async def forget_replicas(self, key: ModelKey) -> None:
        """Drop the signs of life of a former run; a replica that lives gives its next one soon."""
        for replica_id in await self._redis.smembers(self._keys.replicas(key.slug)):
            await self.leave(key, replica_id.decode())

    async def want(self, key: ModelKey, replicas: int) -> None:
        """Say how many replicas of a model shall run."""
        await self._redis.set(self._keys.wanted(key.slug), replicas)

    async def wanted(self, slug: str) -> int | None:
        """How many replicas of a model shall run; None where nobody has said."""
        said = await self._redis.get(self._keys.wanted(slug))
        return None if said is None else int(said)

    async def beat(self, key: ModelKey, replica: Replica) -> None:
        """A replica's sign of life; it counts for three heartbeats."""
        name = self._keys.replica(key.slug, replica.id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.sadd(self._keys.replicas(key.slug), replica.id)
            pipe.set(name, replica.model_dump_json(), px=int(HEARTBEAT * 3000))
            await pipe.execute()

    async def leave(self, key: ModelKey, replica_id: str) -> None:
        await self._redis.srem(self._keys.replicas(key.slug), replica_id)
        await self._redis.delete(self._keys.replica(key.slug, replica_id))

    async def find(self, key: ModelKey) -> HostedModel:
        """The hosted model of this key. Raises UnknownModel, which lists what is hosted."""
        found = await self.look(key)
        if found is None:
            raise UnknownModel(str(key), [str(model.card.key) for model in await self.all()])
        return found

    async def look(self, key: ModelKey) -> HostedModel | None:
        """The hosted model of this key, if there is one."""
        return await self._read(key.slug)

    def recent(self, key: ModelKey) -> Recent | None:
        """The model of this key if it was ready when this process last read it: no way to Redis."""
        return self._recent.get(key.slug)

    async def all(self) -> list[HostedModel]:
        """Every hosted model, by repo id."""
        slugs = await self._redis.hkeys(self._keys.models)
        models = await asyncio.gather(*(self._read(slug.decode()) for slug in slugs))
        return sorted((one for one in models if one is not None), key=lambda model: model.card.key.repo_id)

    async def speed(self, key: ModelKey) -> float | None:
        """Seconds for a token to go through a model once, as measured lately; None where nobody has."""
        found = await self._redis.hget(self._keys.speeds, key.slug)
        return None if found is None else float(found)

    async def measured(self, key: ModelKey, seconds: float) -> None:
        """Say how long a token took lately; what was known before counts four times as much."""
        former = await self.speed(key)
        now = seconds if former is None else 0.8 * former + 0.2 * seconds
        await self._redis.hset(self._keys.speeds, key.slug, f"{now:.9g}")

    async def publish_environment(self, environment: dict[str, Any]) -> None:
        """Say what workers run: ``{"python_version": sys.version, "packages": {import name: version}}``."""
        await self._redis.set(self._keys.environment, json.dumps(environment))

    async def environment(self) -> dict[str, Any] | None:
        """What workers run, or None while none has said it."""
        data = await self._redis.get(self._keys.environment)
        environment: dict[str, Any] | None = None if data is None else json.loads(data)
        return environment

    async def put_file(self, key: ModelKey, name: str, data: bytes) -> None:
        """Store a small hub file, such as ``tokenizer.json``."""
        await self._files.put(f"hub/{key.slug}/{name}", data)

    async def replace_files(self, key: ModelKey, files: Mapping[str, bytes]) -> None:
        """Make these the hub files of a model; others that it had go."""
        for name, data in files.items():
            await self.put_file(key, name, data)
        for name in set(await self._files.names(f"hub/{key.slug}")) - set(files):
            await self._files.delete(f"hub/{key.slug}/{name}")

    async def file(self, key: ModelKey, name: str) -> bytes:
        """A hub file. Raises FileNotFoundError."""
        if name not in await self._files.names(f"hub/{key.slug}"):
            raise FileNotFoundError(name)
        return await self._files.get(f"hub/{key.slug}/{name}")

    async def file_sizes(self, key: ModelKey) -> dict[str, int]:
        """The hub files of a model and their bytes."""
        names = await self._files.names(f"hub/{key.slug}")
        return {name: await self._files.size(f"hub/{key.slug}/{name}") for name in names}

    async def _remember(self, card: ModelCard) -> None:
        known_as = model_id(card.key.canonical, card.commit)
        former = await self._seen.get(known_as)
        record = ModelRecord(
            id=known_as,
            key=card.key,
            commit=card.commit,
            dtype=card.dtype,
            facts=told({**(card.config.get("text_config") or {}), **card.config}),
            n_params=card.n_params or (former.n_params if former else None),
            size_bytes=card.size_bytes or (former.size_bytes if former else None),
            first_seen=former.first_seen if former else round(time.time(), 3),
        )
        if record != former:
            await self._seen.put(known_as, record)
        else:
            await self._redis.incr(self._keys.lake_version)  # it may have been withdrawn meanwhile

    async def _read(self, slug: str) -> HostedModel | None:
        """A model and how it is doing: two ways to Redis and back, for every request asks for it."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(self._keys.models, slug)
            pipe.smembers(self._keys.replicas(slug))
            pipe.get(self._keys.wanted(slug))
            pipe.hget(self._keys.moments, slug)
            pipe.sismember(self._keys.paused, slug)
            pipe.smembers(self._keys.drained)
            data, found, wanted, moment, paused, drained = await pipe.execute()
        self._recent.pop(slug, None)
        if data is None:
            return None
        card, digest = _card(data)
        ids = sorted(found)
        signs = await self._redis.mget([self._keys.replica(slug, one.decode()) for one in ids]) if ids else []
        if silent := [one for one, sign in zip(ids, signs, strict=True) if sign is None]:
            await self._redis.srem(self._keys.replicas(slug), *silent)
        replicas = tuple(
            Replica.model_validate_json(sign).model_copy(update={"drained": one in drained})
            for one, sign in zip(ids, signs, strict=True)
            if sign is not None
        )
        wanted = None if wanted is None else int(wanted)
        model = HostedModel(
            card=card,
            state=_state(card, replicas, wanted),
            replicas=replicas,
            wanted=wanted,
            paused=bool(paused),
            moment=None if moment is None else Moment.model_validate_json(moment),
        )
        if ready := [replica.id for replica in replicas if replica.state is ModelState.READY]:
            self._recent[slug] = Recent(model, digest, ready[0])
        return model


@lru_cache(maxsize=256)
def _card(data: bytes) -> tuple[ModelCard, str]:
    """What Redis has of a model, read once: its configuration is long, and the same at every request. And its SHA-1."""
    return ModelCard.model_validate_json(data), hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _state(card: ModelCard, replicas: tuple[Replica, ...], wanted: int | None) -> ModelState:
    if any(replica.state is ModelState.READY for replica in replicas):
        return ModelState.READY
    if card.failure is not None:
        return ModelState.FAILED
    return ModelState.COLD if wanted == 0 and not replicas else ModelState.DEPLOYING
