"""A job's events: look at the last, follow from the first to the end. The queue writes them."""

from collections.abc import AsyncIterator

from redis.asyncio import Redis

from interlace.protocol import event as words
from interlace.protocol.errors import UnknownJob
from interlace.protocol.event import Ended, Event
from interlace_state.keys import Keys

_BLOCK_MS = 2_000  # well under `store.ANSWER_SECONDS`, which counts this wait
_BATCH = 256


class Events:
    """The event streams of all jobs."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def last(self, job_id: str, tenant: str) -> Event:
        """The newest event that is not a log, of a tenant's job. Raises UnknownJob, for another's as for none."""
        data, owner = await self._redis.hmget(self._keys.job(job_id), "last", "tenant")
        if data is None or owner != tenant.encode():
            raise UnknownJob(f"There is no job {job_id}: it never was, or its lifetime is over.")
        return words.decode(data)

    async def follow(self, job_id: str, after: str = "0") -> AsyncIterator[tuple[str, Event]]:
        """Yield (event id, event) after the event ``after``, then live, and stop behind the last one."""
        stream = self._keys.events(job_id)
        while True:
            replies = await self._redis.xread({stream: after}, count=_BATCH, block=_BLOCK_MS)
            if not replies and not await self._redis.exists(stream):
                raise UnknownJob(f"The events of job {job_id} are gone: its lifetime is over.")
            for entry, fields in replies[0][1] if replies else ():
                after = entry.decode()
                event = words.decode(fields[b"e"])
                yield after, event
                if isinstance(event, Ended):
                    return
