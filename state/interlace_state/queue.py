"""The queue of each model, both ends: submit, lease, renew, finish, give back."""

import asyncio
import math
import secrets
import time
from dataclasses import dataclass
from importlib.resources import files

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from interlace.protocol import event as words
from interlace.protocol.errors import SessionRefused, TooMany
from interlace.protocol.event import Ended, Event, StateChanged
from interlace.protocol.job import Job, JobState
from interlace.protocol.model import ModelKey
from interlace_state.config import LifetimeConfig
from interlace_state.keys import Keys

_GROUP = "workers"
_POLL_MS = 1_000
_RETRY_AFTER = 10  # seconds
_MOST_DRAWS = 100  # jobs that may not run yet, which one call passes over
_PAUSE = 0.1  # seconds, where there are only such jobs
_Entries = list[tuple[bytes, dict[bytes, bytes]]]
_NO_SESSION, _SESSION_TAKEN, _QUEUE_FULL = -1, -2, -3


@dataclass(frozen=True)
class Lease:
    """A job that one worker may run until the lease lapses."""

    job: Job
    entry: str
    #: How many workers have had this job and not given it back, this one included.
    attempt: int
    #: Which lease of the job this is: what is said under an older one is not heard.
    fence: int


class Queue:
    """Jobs that wait and jobs that run, of all models."""

    def __init__(self, redis: Redis, keys: Keys, lifetimes: LifetimeConfig) -> None:
        self._redis = redis
        self._keys = keys
        self._lifetimes = lifetimes
        self._submit = redis.register_script(_script("submit"))
        self._take = redis.register_script(_script("take"))
        self._renew = redis.register_script(_script("renew"))
        self._record = redis.register_script(_script("record"))
        self._finish = redis.register_script(_script("finish"))
        self._fail = redis.register_script(_script("fail"))
        self._cancel = redis.register_script(_script("cancel"))
        self._requeue = redis.register_script(_script("requeue"))
        self._forget_workers = redis.register_script(_script("forget_workers"))
        self._looked_for_lapsed: dict[str, float] = {}

    async def submit(self, job: Job, *, waiting_jobs: int, running_jobs: int, model_ready: bool) -> int:
        """Make a job durable and wake a worker; returns its place in the queue, from 1.

        At most ``running_jobs`` of the tenant run at a time. Raises SessionRefused, or TooMany when ``waiting_jobs`` of
        its jobs wait or run already.
        """
        first = StateChanged(state=JobState.QUEUED, text="Added to Queue at position {place}.", model_ready=model_ready)
        place = await self._submit(
            keys=[
                *self._keys_of(job.id, job.model),
                self._keys.session(job.session_id or "-"),
                self._keys.live(job.model.slug, job.tenant),
                self._keys.running(job.tenant),
            ],
            args=[
                job.id,
                job.model_dump_json(),
                words.encode(first),
                self._lifetimes.waiting,
                waiting_jobs,
                "1" if job.session_id else "0",
                job.tenant,
                running_jobs,
            ],
        )
        if place == _NO_SESSION:
            raise SessionRefused("This session id is not open here. Connect to /subscribe first; it gives the id.")
        if place == _SESSION_TAKEN:
            raise SessionRefused("This session has a job already. Open another /subscribe connection for the next.")
        if place == _QUEUE_FULL:
            raise TooMany("Jobs that wait", waiting_jobs, "jobs", "limits.waiting_jobs", retry_after=_RETRY_AFTER)
        return int(place)

    async def length(self, model: ModelKey) -> int:
        """Jobs that wait or run."""
        return int(await self._redis.xlen(self._keys.queue(model.slug)))

    async def lease(self, model: ModelKey, worker: str) -> Lease | None:
        """The next job of a model that may run, or None if there is none within about a second."""
        stream = self._keys.queue(model.slug)
        passed: set[bytes] = set()
        while len(passed) < _MOST_DRAWS:
            try:
                entries = await self._lapsed(stream, worker) or await self._next(stream, worker)
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                await self._create_group(stream)
                return None
            if not entries:
                return None
            entry, fields = entries[0]
            if lease := await self._take_one(model, worker, entry, fields[b"job"]):
                return lease
            if fields[b"job"] in passed:
                break
            passed.add(fields[b"job"])
        await asyncio.sleep(_PAUSE)
        return None

    async def _take_one(self, model: ModelKey, worker: str, entry: bytes, job_id: bytes) -> Lease | None:
        args = [entry, worker, secrets.token_hex(8), self._lifetimes.waiting]
        taken = await self._take(keys=self._keys_of(job_id.decode(), model), args=args)
        if not taken:
            return None
        record, attempt, fence = taken
        return Lease(job=Job.model_validate_json(record), entry=entry.decode(), attempt=attempt, fence=fence)

    async def renew(self, lease: Lease, worker: str) -> bool:
        """Say that the worker still lives; False if the job is no longer its own. Call often in ``lifetimes.lease``."""
        args = [lease.entry, worker, lease.fence, self._lifetimes.waiting]
        return bool(await self._renew(keys=self._keys_of(lease.job.id, lease.job.model), args=args))

    async def record(self, lease: Lease, *events: Event) -> bool:
        """Add events that are not the job's last; False, and nothing is added, if the job is no longer the lease's."""
        args: list[str | bytes | int] = [lease.fence, secrets.token_hex(8)]
        for event in events:
            args += [event.state if isinstance(event, StateChanged) else "", words.encode(event)]
        return bool(await self._record(keys=self._keys_of(lease.job.id, lease.job.model)[:2], args=args))

    async def finish(self, lease: Lease, end: Ended) -> bool:
        """Write the job's last event; False if somebody else had ended it or holds it by now."""
        args = [lease.entry, lease.fence, end.state, words.encode(end), self._lifetimes.result]
        return bool(await self._finish(keys=self._keys_of(lease.job.id, lease.job.model), args=args))

    async def give_back(self, lease: Lease, text: str) -> None:
        """Return a job that this worker will not run to its queue, unless it is another's by now."""
        event = words.encode(StateChanged(state=JobState.QUEUED, text=text))
        args = [lease.entry, lease.fence, event, lease.job.id, self._lifetimes.waiting]
        await self._requeue(keys=self._keys_of(lease.job.id, lease.job.model), args=args)

    async def cancel(self, job_id: str, text: str) -> bool:
        """End a job, waiting or running; False if it had ended. Its worker stops within a third of a lease."""
        end = Ended(state=JobState.CANCELLED, text=text)
        keys = [self._keys.job(job_id), self._keys.events(job_id)]
        return bool(await self._cancel(keys=keys, args=[end.state, words.encode(end), self._lifetimes.result]))

    async def fail_waiting(self, model: ModelKey, text: str) -> int:
        """End the jobs of a model that no worker holds, or whose worker has gone silent; returns how many."""
        return await self._end_all(model, text, str(int(self._lifetimes.lease * 1000)))

    async def fail_all(self, model: ModelKey, text: str) -> int:
        """End every job of a model that is hosted no more, running or not; returns how many."""
        return await self._end_all(model, text, "")

    async def _end_all(self, model: ModelKey, text: str, silent_ms: str) -> int:
        end = Ended(state=JobState.ERROR, text=text)
        failed = 0
        for entry, fields in await self._redis.xrange(self._keys.queue(model.slug)):
            args = [entry, end.state, words.encode(end), self._lifetimes.result, silent_ms]
            failed += int(await self._fail(keys=self._keys_of(fields[b"job"].decode(), model), args=args))
        return failed

    async def _lapsed(self, stream: str, worker: str) -> _Entries:
        """A job whose worker has gone silent, looked for a few times in a lease's length. Raises ResponseError."""
        now = time.monotonic()
        if now - self._looked_for_lapsed.get(stream, -math.inf) < self._lifetimes.lease / 3:
            return []
        idle_ms = int(self._lifetimes.lease * 1000)
        cursor = b"0-0"
        entries: _Entries = []
        while not entries:
            # One call looks at ten held entries; the cursor is where the next one goes on.
            cursor, entries, *_ = await self._redis.xautoclaim(stream, _GROUP, worker, idle_ms, cursor, count=1)
            if cursor == b"0-0":
                break
        if not entries:
            self._looked_for_lapsed[stream] = now
            await self._forget_workers(keys=[stream], args=[idle_ms])
        return list(entries)

    async def _next(self, stream: str, worker: str) -> _Entries:
        """A job that no worker has had since it was queued. Raises ResponseError."""
        replies = await self._redis.xreadgroup(_GROUP, worker, {stream: ">"}, count=1, block=_POLL_MS)
        return list(replies[0][1]) if replies else []

    async def _create_group(self, stream: str) -> None:
        try:
            await self._redis.xgroup_create(stream, _GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _keys_of(self, job_id: str, model: ModelKey) -> list[str]:
        return [self._keys.job(job_id), self._keys.events(job_id), self._keys.queue(model.slug)]


def _script(name: str) -> str:
    return files("interlace_state").joinpath("scripts", f"{name}.lua").read_text()
