"""Open and close the meeting place."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from interlace_state.config import Config
from interlace_state.events import Events
from interlace_state.files import Files
from interlace_state.keys import Keys
from interlace_state.models import Models
from interlace_state.queue import Queue
from interlace_state.results import Results
from interlace_state.sessions import Sessions

_MOST_CONNECTIONS = 10_000  # every stream that waits for events holds one; redis-py would stop at 100


@dataclass(frozen=True)
class State:
    """The managers that gateways and workers share, over one Redis and one file store."""

    redis: Redis
    queue: Queue
    events: Events
    results: Results
    sessions: Sessions
    models: Models


@asynccontextmanager
async def open_state(config: Config) -> AsyncIterator[State]:
    """Connect. Raises ValueError without `redis.url`, redis.ConnectionError if nobody answers there."""
    if config.redis.url is None:
        raise ValueError("`redis.url` is not set: name a Redis server, or let `interlace up` start one.")
    # A connection that died with the server is found out by its next call, which is then made once more.
    retry = Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), retries=5)
    redis = Redis.from_url(config.redis.url, protocol=2, retry=retry, max_connections=_MOST_CONNECTIONS)
    keys = Keys(config.redis.prefix)
    files = Files(config.store_url)
    try:
        await redis.ping()
        yield State(
            redis=redis,
            queue=Queue(redis, keys, config.lifetimes),
            events=Events(redis, keys),
            results=Results(redis, keys, files, config.lifetimes),
            sessions=Sessions(redis, keys),
            models=Models(redis, keys, files),
        )
    finally:
        await redis.aclose()
