"""The queue of each model, both ends: submit, lease, renew, finish, give back.

One stream for each model and tenant; `scripts/` has what must happen whole, `scripts/common.lua` what is fair.
"""

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from interlace.protocol import event as words
from interlace.protocol.errors import IdempotencyConflict, SessionRefused, TooMany
from interlace.protocol.event import Ended, Event, Picture, Progress, StateChanged
from interlace.protocol.job import Cost, Job, JobState, Limits
from interlace.protocol.model import ModelKey
from interlace_state.audit import Audit
from interlace_state.keys import Keys
from interlace_state.models import Recent
from interlace_state.place import Place, reason
from interlace_state.scripts import script
from interlace_state.settings.limits import LimitChanges
from interlace_state.settings.services import LifetimeConfig

_SCRIPTS = (
    "submit",
    "pick",
    "company",
    "renew",
    "record",
    "finish",
    "fail",
    "cancel",
    "stop",
    "leave",
    "requeue",
    "part",
    "place",
    "sweep",
)
_POLL_SECONDS = 1
_RETRY_AFTER = 10  # seconds
_LISTEN_SECONDS = 2.0  # well under `store.ANSWER_SECONDS`, which counts this wait
_AT_REST = -1  # the model is paused, or the worker drained
_NO_SESSION, _SESSION_TAKEN, _QUEUE_FULL, _OTHER_PAYLOAD, _MODEL_CHANGED = -1, -2, -3, -4, -5


class ModelChanged(Exception):
    """A model is not what it was when it was last read: read it again."""


@dataclass(frozen=True)
class Submitted:
    """A job that was taken in, now or when the same request came before."""

    job_id: str
    #: Among its tenant's own jobs of the model, from 1.
    place: int
    #: Whether the job was there already, under the same idempotency key.
    replayed: bool


@dataclass(frozen=True)
class Lease:
    """A job that one worker may run until the lease lapses."""

    #: Under the limits that an operator has set for its tenant by now.
    job: Job
    #: How many workers have had this job and not given it back, this one included.
    attempt: int
    #: Which lease of the job this is: what is said under an older one is not heard.
    fence: int
    #: By this machine's clock: given no earlier than this, so that it is nobody else's for a lease from then.
    since: float
    #: Whether another job of its tenant waits that it may share a forward with.
    has_company: bool = False

    @property
    def age(self) -> float:
        """Seconds for which it has been held, at most."""
        return _now() - self.since


class Queue:
    """Jobs that wait and jobs that run, of all models."""

    def __init__(self, redis: Redis, keys: Keys, lifetimes: LifetimeConfig, audit: Audit) -> None:
        self._redis = redis
        self._keys = keys
        self._lifetimes = lifetimes
        self._audit = audit
        self._lease_ms = int(lifetimes.lease * 1000)
        #: How long a worker may be silent before its job is another's.
        self.lease_seconds = lifetimes.lease
        common = script("common")
        self._scripts = {name: redis.register_script(common + script(name)) for name in _SCRIPTS}

    async def _run(self, name: str, *args: str | bytes | int) -> Any:
        return await self._scripts[name](keys=[], args=[self._keys.prefix, *args])

    async def submit(
        self,
        job: Job,
        *,
        waiting_jobs: int,
        running_jobs: int,
        kept_jobs: int,
        model_ready: bool,
        idempotency: tuple[str, str] | None = None,
        batching: bool = True,
        recent: Recent | None = None,
    ) -> Submitted:
        """Make a job durable and wake a worker.

        At most ``running_jobs`` of the tenant run at a time; over ``kept_jobs``, the oldest that have ended are
        forgotten. ``idempotency`` is a digest of the client's key and one of the payload. Without ``batching`` the job
        shares its forward with none. ``recent`` is what was known of its model, if that may have changed since. Raises
        ModelChanged, SessionRefused, IdempotencyConflict, or TooMany when ``waiting_jobs`` of the tenant's jobs wait or
        run already.
        """
        text = "Added to Queue at position {place}."
        first = StateChanged(state=JobState.QUEUED, text=text, model_ready=model_ready)
        answer = await self._run(
            "submit",
            job.id,
            job.model_dump_json(),
            words.encode(first),
            self._lifetimes.waiting,
            waiting_jobs,
            job.session_id,
            job.tenant,
            running_jobs,
            job.model.slug,
            *(idempotency or ("", "")),
            kept_jobs,
            kin_of(job) if batching else "",
            *((recent.digest, recent.replica) if recent else ("", "")),
        )
        if answer == _MODEL_CHANGED:
            raise ModelChanged
        if answer == _NO_SESSION:
            raise SessionRefused("This session id is not open here. Connect to /subscribe first; it gives the id.")
        if answer == _SESSION_TAKEN:
            raise SessionRefused("This session has a job already. Open another /subscribe connection for the next.")
        if answer == _QUEUE_FULL:
            raise TooMany(
                "The number of your waiting jobs", waiting_jobs, "jobs", "limits.waiting_jobs", retry_after=_RETRY_AFTER
            )
        if answer == _OTHER_PAYLOAD:
            raise IdempotencyConflict
        place, job_id = answer
        return Submitted(job_id.decode(), int(place), replayed=job_id.decode() != job.id)

    async def length(self, model: ModelKey) -> int:
        """Jobs that wait or run."""
        streams = await self._streams(model)
        async with self._redis.pipeline(transaction=False) as pipe:
            for stream in streams:
                pipe.xlen(stream)
            return sum(await pipe.execute())

    async def submitted(self, model: ModelKey) -> int:
        """Jobs that have ever come to a model: another number, and somebody has used it."""
        return int(await self._redis.hget(self._keys.fair(model.slug), "submitted") or 0)

    async def running(self, model: ModelKey) -> int:
        """Jobs that workers hold."""
        return int(await self._redis.zcount(self._keys.leases(model.slug), "(0", "+inf"))

    async def usual(self, model: ModelKey) -> float | None:
        """Seconds that a job of a model usually takes, lately; None before the first has ended."""
        seconds = await self._redis.hget(self._keys.fair(model.slug), "seconds")
        return None if seconds is None else float(seconds)

    async def oldest(self, model: ModelKey) -> float | None:
        """When the oldest job that nobody has had yet was queued, in Unix seconds of Redis' clock; None without one."""
        times = []
        for stream in await self._streams(model):
            with contextlib.suppress(ResponseError):  # its last job has just ended
                for group in await self._redis.xinfo_groups(stream):
                    waiting = await self._redis.xrange(stream, min=b"(" + group["last-delivered-id"], count=1)
                    times += [int(entry.split(b"-")[0]) / 1000 for entry, _ in waiting]
        return min(times, default=None)

    async def place(self, job_id: str) -> Place | None:
        """Where a job stands; None if it does not wait."""
        found = await self._run("place", job_id)
        if found is None:
            return None
        ahead, seconds, why, detail = found
        return Place(int(ahead), float(seconds) if seconds else None, reason(why.decode(), detail.decode()))

    async def lease(self, model: ModelKey, worker: str) -> Lease | None:
        """The next job of a model that may run, or None if there is none within about a second."""
        since = _now()
        picked = await self._run("pick", *self._picking(model.slug, worker))
        if picked == _AT_REST:
            await asyncio.sleep(_POLL_SECONDS)
        elif not picked:
            since = _now()
            picked = await self._pick_when_woken(model.slug, worker)
        if not picked or picked == _AT_REST:
            return None
        return _lease(picked, since)

    async def company(self, lease: Lease, worker: str, most: int) -> list[Lease]:
        """Lease up to ``most`` more jobs, which wait next in the tenant's queue and may share a forward with its job.

        They are no more than the tenant may run, and than what usually takes ten seconds, or one while others wait.
        The seconds of all of them count once against the tenant.
        """
        token = secrets.token_hex(8)
        args = (lease.job.id, lease.fence, most, worker, token, self._lease_ms, self._lifetimes.waiting)
        since = _now()
        return [_lease(picked, since) for picked in await self._run("company", *args)]

    def _picking(self, slug: str, worker: str) -> tuple[str | int, ...]:
        """What `pick` takes, with a token of this call's own."""
        return slug, worker, secrets.token_hex(8), self._lease_ms, self._lifetimes.waiting

    async def _pick_when_woken(self, slug: str, worker: str) -> Any:
        """Pick once a job comes, or after a second: Redis has been told both before, and goes on by itself."""
        args = self._picking(slug, worker)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.blpop([self._keys.wake(slug)], timeout=_POLL_SECONDS)
            pipe.evalsha(self._scripts["pick"].sha, 0, self._keys.prefix, *args)
            try:
                _, picked = await pipe.execute()
            except NoScriptError:  # Redis has begun anew meanwhile
                picked = await self._run("pick", *args)
        return picked

    async def renew(self, lease: Lease) -> bool:
        """Say that the worker still lives; False if the job is no longer its own. Call often in ``lifetimes.lease``."""
        return bool(await self._run("renew", lease.job.id, lease.fence, self._lease_ms, self._lifetimes.waiting))

    async def record(self, lease: Lease, *events: Event) -> bool:
        """Add events that are not the job's last; False, and nothing is added, if the job is no longer the lease's."""
        args: list[str | bytes | int] = [lease.job.id, lease.fence, secrets.token_hex(8)]
        for event in events:
            args += [_mark(event), words.encode(event)]
        return bool(await self._run("record", *args))

    async def finish(self, lease: Lease, end: Ended) -> bool:
        """Write the job's last event; False if somebody else had ended it or holds it by now."""
        args = (lease.job.id, lease.fence, end.state, words.encode(end), self._lifetimes.result)
        if not await self._run("finish", *args):
            return False
        self._audit.ended(lease.job, end)
        return True

    async def give_back(self, lease: Lease, text: str) -> None:
        """Return a job that this worker will not run to its queue, unless it is another's by now."""
        event = words.encode(StateChanged(state=JobState.QUEUED, text=text))
        await self._run("requeue", lease.job.id, lease.fence, event, self._lifetimes.waiting)

    async def part(self, lease: Lease, text: str) -> None:
        """Return a job that cannot share a forward to its queue, where it is its tenant's next, to run alone."""
        event = words.encode(StateChanged(state=JobState.QUEUED, text=text))
        await self._run("part", lease.job.id, lease.fence, event, self._lifetimes.waiting)

    async def cancel(self, job_id: str, text: str) -> bool:
        """End a job, waiting or running; False if it had ended. Its worker is told, and kills it."""
        return await self._end("cancel", job_id, Ended(state=JobState.CANCELLED, text=text))

    async def stop(self, job_id: str, text: str) -> bool:
        """Ask a job that a worker holds to end with what it has; False if none does, or it was asked before."""
        event = StateChanged(state=JobState.RUNNING, text=text)
        return bool(await self._run("stop", job_id, words.encode(event)))

    async def is_stopping(self, job_id: str) -> bool:
        """Whether a job was asked to end with what it has."""
        return bool(await self._redis.hexists(self._keys.job(job_id), "stopping"))

    async def leave(self, job_id: str, session_id: str, text: str) -> bool:
        """A session that followed a job is gone: cancel it, unless others follow it or it is polled."""
        return await self._end("leave", job_id, Ended(state=JobState.CANCELLED, text=text), session_id)

    async def is_over(self, job_id: str) -> bool:
        """Whether a job was cancelled, or nothing is known of it."""
        return await self._redis.hget(self._keys.job(job_id), "state") in (b"cancelled", None)

    async def cancelled(self) -> AsyncIterator[tuple[str, bool]]:
        """Ids of jobs that are cancelled from now on, wherever they run, and whether they may end with what they have.

        Raises RedisError when the connection goes.
        """
        async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(self._keys.cancelled, self._keys.stopping)
            while True:
                message = await channel.get_message(timeout=_LISTEN_SECONDS)
                if message is not None:
                    yield message["data"].decode(), message["channel"].decode() == self._keys.stopping

    async def fail_waiting(self, model: ModelKey, text: str) -> int:
        """End the jobs of a model that no worker holds, or whose worker has gone silent; returns how many."""
        return await self._end_all(model, text, "")

    async def fail_all(self, model: ModelKey, text: str) -> int:
        """End every job of a model that is hosted no more, running or not; returns how many."""
        return await self._end_all(model, text, "1")

    async def sweep(self, model: ModelKey, older_than: float) -> int:
        """Take jobs that came before a Unix time, and whose record is gone, out of the queue; returns how many."""
        return int(await self._run("sweep", model.slug, int(older_than * 1000)))

    async def _end_all(self, model: ModelKey, text: str, held_too: str) -> int:
        end = Ended(state=JobState.ERROR, text=text)
        failed = 0
        for stream in await self._streams(model):
            for _, fields in await self._redis.xrange(stream):
                failed += await self._end("fail", fields[b"job"].decode(), end, held_too)
        return failed

    async def _end(self, name: str, job_id: str, end: Ended, *args: str) -> bool:
        ended = bool(await self._run(name, job_id, end.state, words.encode(end), self._lifetimes.result, *args))
        record, used = await self._redis.hmget(self._keys.job(job_id), "record", "used_ms")
        if ended and record is not None:
            cost = Cost(runtime=None if used is None else int(used) / 1000)
            self._audit.ended(Job.model_validate_json(record), end.model_copy(update={"cost": cost}))
        return ended

    async def _streams(self, model: ModelKey) -> list[str]:
        tenants = await self._redis.smembers(self._keys.tenants(model.slug))
        return [self._keys.queue(model.slug, tenant.decode()) for tenant in sorted(tenants)]


def _mark(event: Event) -> str:
    """What `record` keeps of an event beside the event itself."""
    if isinstance(event, StateChanged):
        return event.state
    return event.type if isinstance(event, (Progress, Picture)) else ""


def _lease(picked: Any, since: float) -> Lease:
    record, attempt, fence, company, limits = picked
    # A job that has lost a worker may have been the one that took it down: it runs alone.
    shares = bool(company) and attempt == 1
    job = Job.model_validate_json(record)
    if limits:
        changed = LimitChanges.model_validate_json(limits).model_dump(
            include=set(Limits.model_fields), exclude_none=True
        )
        job = job.model_copy(update={"limits": job.limits.model_copy(update=changed)})
    return Lease(job=job, attempt=attempt, fence=fence, since=since, has_company=shares)


def kin_of(job: Job) -> str:
    """Equal for jobs of one model and tenant that may share a process, as far as can be told from outside."""
    facts = json.dumps([job.kind, job.compress, job.env], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _now() -> float:
    """Seconds by a clock that nobody sets, and that goes on while the machine sleeps where there is such a one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
