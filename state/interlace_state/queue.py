"""The queue of each model, both ends: submit, lease, renew, finish, give back."""

import time
from dataclasses import dataclass
from importlib.resources import files

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from interlace.protocol import event as words
from interlace.protocol.errors import LimitExceeded, SessionRefused
from interlace.protocol.event import Ended, Event, StateChanged
from interlace.protocol.job import Job, JobState
from interlace.protocol.model import ModelKey
from interlace_state.config import LifetimeConfig
from interlace_state.keys import Keys

_GROUP = "workers"
_POLL_MS = 1_000
_NO_SESSION, _SESSION_TAKEN, _QUEUE_FULL = -1, -2, -3


@dataclass(frozen=True)
class Lease:
    """A job that one worker may run until the lease lapses."""

    job: Job
    entry: str
    #: How many workers have had this job, this one included.
    attempt: int


class Queue:
    """Jobs that wait and jobs that run, of all models."""

    def __init__(self, redis: Redis, keys: Keys, lifetimes: LifetimeConfig) -> None:
        self._redis = redis
        self._keys = keys
        self._lifetimes = lifetimes
        self._submit = redis.register_script(_script("submit"))
        self._finish = redis.register_script(_script("finish"))
        self._requeue = redis.register_script(_script("requeue"))
        self._looked_for_lapsed: dict[str, float] = {}

    async def submit(self, job: Job, *, waiting_jobs: int, model_ready: bool) -> int:
        """Make a job durable and wake a worker; returns its place in the queue, from 1.

        Raises SessionRefused, or LimitExceeded when ``waiting_jobs`` jobs wait already.
        """
        slug = job.model.slug
        first = StateChanged(state=JobState.QUEUED, text="Added to Queue at position {place}.", model_ready=model_ready)
        place = await self._submit(
            keys=[
                self._keys.job(job.id),
                self._keys.events(job.id),
                self._keys.queue(slug),
                self._keys.session(job.session_id or "-"),
            ],
            args=[
                job.id,
                job.model_dump_json(),
                words.encode(first),
                self._lifetimes.waiting,
                waiting_jobs,
                "1" if job.session_id else "0",
            ],
        )
        if place == _NO_SESSION:
            raise SessionRefused("This session id is not open here. Connect to /subscribe first; it gives the id.")
        if place == _SESSION_TAKEN:
            raise SessionRefused("This session has a job already. Open another /subscribe connection for the next.")
        if place == _QUEUE_FULL:
            raise LimitExceeded("The number of waiting jobs", waiting_jobs, "jobs", "limits.waiting_jobs")
        return int(place)

    async def length(self, model: ModelKey) -> int:
        """Jobs that wait or run."""
        return int(await self._redis.xlen(self._keys.queue(model.slug)))

    async def lease(self, model: ModelKey, worker: str) -> Lease | None:
        """The next job of a model, or None if there is none within a second."""
        stream = self._keys.queue(model.slug)
        entries = await self._lapsed(stream, worker)
        if not entries:
            try:
                replies = await self._redis.xreadgroup(_GROUP, worker, {stream: ">"}, count=1, block=_POLL_MS)
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                await self._create_group(stream)
                return None
            entries = replies[0][1] if replies else []
        for entry, fields in entries:
            if lease := await self._take(stream, entry.decode(), fields[b"job"].decode()):
                return lease
        return None

    async def renew(self, lease: Lease, worker: str) -> None:
        """Say that the worker still lives. Call more often than ``lifetimes.lease``."""
        await self._redis.xclaim(self._keys.queue(lease.job.model.slug), _GROUP, worker, 0, [lease.entry], justid=True)

    async def finish(self, lease: Lease, end: Ended) -> bool:
        """Write the job's last event; False if somebody else had ended it."""
        return bool(await self._ended(lease.job, lease.entry, end))

    async def give_back(self, lease: Lease, text: str) -> None:
        """Return a job that this worker will not run to its queue."""
        event: Event = StateChanged(state=JobState.QUEUED, text=text)
        await self._requeue(keys=self._keys_of(lease.job), args=[lease.entry, words.encode(event), lease.job.id])

    async def fail_all(self, model: ModelKey, text: str) -> int:
        """End every job that waits for a model that will not come; returns how many."""
        stream = self._keys.queue(model.slug)
        failed = 0
        for entry, fields in await self._redis.xrange(stream):
            record = await self._redis.hget(self._keys.job(fields[b"job"].decode()), "record")
            if record is None:
                await self._redis.xdel(stream, entry)
                continue
            end = Ended(state=JobState.ERROR, text=text)
            failed += await self._ended(Job.model_validate_json(record), entry.decode(), end)
        return failed

    async def _ended(self, job: Job, entry: str, end: Ended) -> int:
        args = [entry, end.state, words.encode(end), self._lifetimes.result]
        return int(await self._finish(keys=self._keys_of(job), args=args))

    async def _lapsed(self, stream: str, worker: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """A job whose worker has gone silent, looked for a few times in a lease's length."""
        now = time.monotonic()
        if now - self._looked_for_lapsed.get(stream, 0.0) < self._lifetimes.lease / 3:
            return []
        self._looked_for_lapsed[stream] = now
        await self._create_group(stream)
        idle_ms = int(self._lifetimes.lease * 1000)
        _, entries, *_ = await self._redis.xautoclaim(stream, _GROUP, worker, idle_ms, count=1)
        return list(entries)

    async def _take(self, stream: str, entry: str, job_id: str) -> Lease | None:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(self._keys.job(job_id), "record", "state")
            pipe.hincrby(self._keys.job(job_id), "attempts", 1)
            (record, state), attempt = await pipe.execute()
        if record is None or JobState(state.decode()).ended:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.xack(stream, _GROUP, entry)
                pipe.xdel(stream, entry)
                if record is None:
                    pipe.delete(self._keys.job(job_id))
                await pipe.execute()
            return None
        return Lease(job=Job.model_validate_json(record), entry=entry, attempt=int(attempt))

    async def _create_group(self, stream: str) -> None:
        try:
            await self._redis.xgroup_create(stream, _GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _keys_of(self, job: Job) -> list[str]:
        return [self._keys.job(job.id), self._keys.events(job.id), self._keys.queue(job.model.slug)]


def _script(name: str) -> str:
    return files("interlace_state").joinpath("scripts", f"{name}.lua").read_text()
