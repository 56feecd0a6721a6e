"""The events of many jobs as they come, read over one connection, whichever jobs come or leave meanwhile.

A read waits in Redis, which hears nothing else from its connection. What shall end it is written, over another one, to
a stream that it reads too: its bell.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import RedisError

from interlace_state.keys import Keys
from interlace_state.tasks import cancelled

_BLOCK_MS = 2_000  # well under `store.ANSWER_SECONDS`, which counts this wait
_AT_ONCE = 256  # events of all jobs that one read brings
_OF_ONE = 16  # but so many of each job, where many are followed
_BELL_SECONDS = 60


@dataclass
class _Followed:
    job_id: str
    after: str


class Following:
    """The jobs that somebody follows. One task reads; add a job between its reads, and `interrupt` one that waits."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._jobs: dict[str, _Followed] = {}
        self._looked_at = time.monotonic()
        self._bell = keys.bell(secrets.token_hex(16))
        #: How often the bell shall have rung, and what of that the read that waits has been sent with.
        self._rings = 0
        self._heard: int | None = None
        self._ringing: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._jobs))

    def add(self, job_id: str, after: str) -> None:
        """Follow a job behind an event."""
        self._jobs[job_id] = _Followed(job_id, after)

    def leave(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    async def read(self) -> AsyncGenerator[tuple[str, str, bytes | None], None]:
        """Yield (job id, event id, event as JSON) of what has come, once; nothing if nothing has within two seconds.

        An event whose taker does not come back for the next is read again. The event is None where those of a job are
        gone: its lifetime is over, and it is followed no more. Raises RedisError.
        """
        jobs = {self._keys.events(one.job_id): one for one in self._jobs.values()}
        count = max(_OF_ONE, _AT_ONCE // max(1, len(jobs)))
        self._heard = self._rings
        bell = {self._bell: f"0-{self._heard}"}
        try:
            replies = await self._redis.xread(
                bell | {stream: one.after for stream, one in jobs.items()}, count=count, block=_BLOCK_MS
            )
        finally:
            self._heard = None
        for stream, entries in replies:
            one = jobs.get(stream.decode())  # None: the bell
            for entry, fields in entries:
                if one is None or self._jobs.get(one.job_id) is not one:  # it has left, or was left and followed again
                    break
                yield one.job_id, entry.decode(), fields[b"e"]
                one.after = entry.decode()
        if time.monotonic() - self._looked_at >= _BLOCK_MS / 1000:
            for one in await self._gone():
                self.leave(one.job_id)
                yield one.job_id, one.after, None
            self._looked_at = time.monotonic()

    def interrupt(self) -> None:
        """Let a read that waits end now."""
        self._rings += 1
        if self._heard is not None and (self._ringing is None or self._ringing.done()):
            self._ringing = asyncio.create_task(self._ring(), name="following-bell")

    async def close(self) -> None:
        if self._ringing is not None:
            await cancelled(self._ringing)

    async def _ring(self) -> None:
        rung = 0
        with suppress(RedisError):  # the read fails as well, or ends by itself
            while self._heard is not None and max(rung, self._heard) < self._rings:
                rung = self._rings
                async with self._redis.pipeline(transaction=False) as pipe:
                    pipe.xadd(self._bell, {"ring": rung}, id=f"0-{rung}", maxlen=1, approximate=False)
                    pipe.expire(self._bell, _BELL_SECONDS)
                    await pipe.execute()

    async def _gone(self) -> list[_Followed]:
        jobs = list(self._jobs.values())
        streams = [self._keys.events(one.job_id) for one in jobs]
        if not streams or await self._redis.exists(*streams) == len(streams):
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for stream in streams:
                pipe.exists(stream)
            there = await pipe.execute()
        return [one for one, is_there in zip(jobs, there, strict=True) if not is_there]
