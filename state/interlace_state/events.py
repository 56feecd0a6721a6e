"""A job's events: look at the last, follow from the first to the end; what changes of many. The queue writes them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from redis.asyncio import Redis

from interlace.protocol import event as words
from interlace.protocol.errors import UnknownJob
from interlace.protocol.event import Ended, Event, Log, Saved, StateChanged
from interlace_state.following import Following
from interlace_state.keys import Keys

_BLOCK_MS = 2_000  # well under `store.ANSWER_SECONDS`, which counts this wait
_BATCH = 256
_LISTEN_SECONDS = 5.0
_MOST_DRAWN = 1_000  # messages that one word of a change stands for


class Events:
    """The event streams of all jobs."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def last(self, job_id: str, tenant: str) -> StateChanged | Ended:
        """The newest event of a job's state, if it is the tenant's. Raises UnknownJob, for another's as for none."""
        data, owner = await self._redis.hmget(self._keys.job(job_id), "last", "tenant")
        if data is None or owner != tenant.encode():
            raise UnknownJob(f"There is no job {job_id}: it never was, or its lifetime is over.")
        event = words.decode(data)
        assert isinstance(event, StateChanged | Ended), "the queue keeps no other"
        return event

    async def value(self, job_id: str, number: int) -> bytes | None:
        """The bytes of a streamed value that travelled in its event, in the last of that number; None for another."""
        stream, first, found = self._keys.events(job_id), "-", None
        sign = f'"number":{number},'.encode()
        while entries := await self._redis.xrange(stream, min=first, count=_BATCH):
            for _, fields in entries:
                event = words.decode(fields[b"e"]) if sign in fields[b"e"] else None
                if isinstance(event, Saved) and event.number == number:
                    found = event.data
            first = f"({entries[-1][0].decode()}"
        return found

    async def lines(self, job_id: str, most: int) -> tuple[list[str], bool]:
        """The last lines that a job printed, ``most`` at most, and whether there were more."""
        stream, last, found = self._keys.events(job_id), "+", list[str]()
        while entries := await self._redis.xrevrange(stream, max=last, count=_BATCH):
            for _, fields in entries:
                event = words.decode(fields[b"e"]) if b'"type":"log"' in fields[b"e"] else None
                if isinstance(event, Log):
                    found.append(event.text)
                    if len(found) > most:
                        return found[most - 1 :: -1], True
            last = f"({entries[-1][0].decode()}"
        return found[::-1], False

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

    def following(self) -> Following:
        """To follow many jobs over one connection."""
        return Following(self._redis, self._keys)

    async def changes(self, tenant: str | None, apart: float) -> AsyncGenerator[None, None]:
        """Yield when the list of a tenant's jobs, or of everybody's for None, is no more what it was: first when that
        will be told from now on, then ``apart`` seconds apart at least, however many jobs change meanwhile.

        Holds one connection. Raises RedisError when it goes.
        """
        async with self._redis.pubsub() as channel:
            if tenant is None:
                await channel.psubscribe(self._keys.changed_of_all)
            else:
                await channel.subscribe(self._keys.changed(tenant))
            while True:
                while await channel.get_message(timeout=_LISTEN_SECONDS) is None:
                    pass
                for _ in range(_MOST_DRAWN):
                    if await channel.get_message() is None:
                        break
                yield
                await asyncio.sleep(apart)
