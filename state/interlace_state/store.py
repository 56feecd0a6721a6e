"""Open and close the meeting place."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import TimeoutError as RedisTimeoutError

from interlace_state.artifacts import Artifacts
from interlace_state.audit import Audit
from interlace_state.checkpoints import Checkpoints
from interlace_state.config import Config
from interlace_state.config_file import ConfigError
from interlace_state.control import Control
from interlace_state.desired import Desires
from interlace_state.entrance import Entrance
from interlace_state.events import Events
from interlace_state.files import Files
from interlace_state.jobs import Jobs
from interlace_state.keys import Keys
from interlace_state.lake.lake import Lake
from interlace_state.life import Life
from interlace_state.metrics import ReplicaMetrics
from interlace_state.models import Models
from interlace_state.queue import Queue
from interlace_state.results import Results
from interlace_state.sessions import Sessions
from interlace_state.tenants import Tenants
from interlace_state.values import Values
from interlace_state.visits import Visits

#: A command that has no answer for this long has failed: the server hangs, or the network has dropped the connection.
ANSWER_SECONDS = 10.0
_MOST_CONNECTIONS = 10_000  # every stream that waits for events holds one; redis-py would stop at 100


@dataclass(frozen=True)
class State:
    """The managers that gateways and workers share, over one Redis and one file store."""

    redis: Redis
    files: Files
    queue: Queue
    events: Events
    results: Results
    values: Values
    artifacts: Artifacts
    lake: Lake
    checkpoints: Checkpoints
    sessions: Sessions
    models: Models
    desired: Desires
    life: Life
    tenants: Tenants
    entrance: Entrance
    visits: Visits
    control: Control
    metrics: ReplicaMetrics
    jobs: Jobs
    audit: Audit


@asynccontextmanager
async def open_state(config: Config) -> AsyncIterator[State]:
    """Connect.

    Raises ConfigError without `redis.url` or with a `store.url` that cannot be used, RedisError if nobody answers.
    """
    if config.redis.url is None:
        raise ConfigError("`redis.url` is not set: name a Redis server, or let `interlace up` start one.")
    files = Files(config.store_url)
    keys = Keys(config.redis.prefix)
    audit = Audit(config.state_dir / "audit.jsonl")
    # A connection that died with the server is found out by its next call, which is then made once more.
    retry = Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), retries=5)
    redis = _Redis.from_url(
        config.redis.url, protocol=2, retry=retry, max_connections=_MOST_CONNECTIONS, socket_timeout=None
    )
    try:
        await redis.ping()
        queue = Queue(redis, keys, config.lifetimes, audit)
        tenants = Tenants(redis, keys)
        artifacts = Artifacts(redis, keys, files, config.store, config.adapters)
        yield State(
            redis=redis,
            files=files,
            queue=queue,
            events=Events(redis, keys),
            results=Results(redis, keys, files, config.store, config.lifetimes),
            values=Values(redis, keys, files),
            artifacts=artifacts,
            lake=Lake(redis, keys, files, artifacts, config.lake),
            checkpoints=Checkpoints(redis, keys, files),
            sessions=Sessions(redis, keys),
            models=Models(redis, keys, files),
            desired=Desires(redis, keys),
            life=Life(redis, keys),
            tenants=tenants,
            entrance=Entrance(redis, keys, config),
            visits=Visits(redis, keys, tenants),
            control=Control(redis, keys, config),
            metrics=ReplicaMetrics(redis, keys),
            jobs=Jobs(redis, keys, queue),
            audit=audit,
        )
    finally:
        await redis.aclose()


class _Redis(Redis):  # type: ignore[misc]
    """Bounds the time to an answer by itself.

    With a `socket_timeout`, redis-py sends by `asyncio.wait_for`, which loses cancellations in Python 3.11.
    """

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await super().execute_command(*args, **options)
        except TimeoutError:
            raise _no_answer() from None

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _Pipeline(Pipeline):  # type: ignore[misc]
    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return list(await super().execute(raise_on_error))
        except TimeoutError:
            raise _no_answer() from None


def _no_answer() -> RedisTimeoutError:
    return RedisTimeoutError(f"Redis has not answered for {ANSWER_SECONDS:g} seconds.")
