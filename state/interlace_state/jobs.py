"""The jobs that there are: list them, look at one, forget one. The queue writes what is read here.

Two sorted sets, of a tenant's jobs and of all, hold ids by the moment of submission. An id whose job is over its
lifetime stays in them until somebody lists past it or the collector comes by.
"""

import re
from collections.abc import AsyncIterator, Iterable, Sequence

from redis.asyncio import Redis

from interlace.protocol import event as words
from interlace.protocol.errors import InvalidRequest, UnknownJob
from interlace.protocol.event import Ended, Picture, Progress, StateChanged
from interlace.protocol.ids import CURSOR
from interlace.protocol.job import Job, JobState
from interlace.protocol.jobs import JobPage, JobView, Standing
from interlace.protocol.model import ModelKey
from interlace_state.keys import Keys
from interlace_state.queue import Queue

MOST = 200  # jobs a page
_MOST_LOOKED_AT = 2_000  # jobs that one page looks at for those that are asked for
_BATCH = 200
_MOST_PLACED = 10  # jobs of a page that are shown with their place, which takes Redis a millisecond each
_FIELDS = ("record", "state", "last", "attempts", "submitted_ms", "started_ms", "ended_ms", "used_ms", "progress")
_Position = tuple[int, bytes]  # milliseconds, id


class Jobs:
    """The index of all jobs."""

    def __init__(self, redis: Redis, keys: Keys, queue: Queue) -> None:
        self._redis = redis
        self._keys = keys
        self._queue = queue

    async def list(
        self,
        tenant: str | None,
        *,
        state: JobState | None = None,
        model: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> JobPage:
        """A tenant's jobs, or those of all for None; the newest first, after the cursor ``before``.

        ``model`` is a repo id or a slug. Ten waiting jobs of a page have their place; `show` tells that of any job.
        A page ends early behind 2,000 jobs that were not asked for: go on until `next` is None. Raises InvalidRequest
        for a cursor that is none.
        """
        index = self._keys.jobs if tenant is None else self._keys.jobs_of(tenant)
        found: list[JobView] = []
        stale: list[bytes] = []
        last: _Position | None = None
        looked_at, at_end = 0, True
        async for batch in self._batches(index, _position(before)):
            for position, view in zip(batch, await self._views([one for _, one in batch]), strict=True):
                if len(found) == min(limit, MOST):
                    at_end = False
                    break
                last = position
                if view is None:
                    stale.append(position[1])
                elif _is_asked_for(view, tenant, state, model):
                    found.append(view)
            looked_at += len(batch)
            if not at_end or looked_at >= _MOST_LOOKED_AT:
                at_end = False
                break
        if stale:
            await self._redis.zrem(index, *stale)
        waiting = [view for view in found if view.state is JobState.QUEUED][:_MOST_PLACED]
        jobs = [await self._placed(view) if view in waiting else view for view in found]
        return JobPage(jobs=jobs, next=None if at_end or last is None else f"{last[0]}-{last[1].decode()}")

    async def show(self, job_id: str, tenant: str | None) -> JobView:
        """A tenant's job, or anybody's for None. Raises UnknownJob, for another's as for none."""
        (view,) = await self._views([job_id.encode()])
        if view is None or tenant not in (None, view.tenant):
            raise _unknown(job_id)
        return await self._placed(view)

    async def model_of(self, job_id: str) -> ModelKey | None:
        """The model of a job; None if nothing is known of it."""
        record = await self._redis.hget(self._keys.job(job_id), "record")
        return None if record is None else Job.model_validate_json(record).model

    async def record(self, job_id: str, tenant: str) -> Job:
        """What a tenant's job was taken in as. Raises UnknownJob, for another's as for none."""
        record = await self._redis.hget(self._keys.job(job_id), "record")
        job = None if record is None else Job.model_validate_json(record)
        if job is None or job.tenant != tenant:
            raise _unknown(job_id)
        return job

    async def picture(self, job_id: str) -> Picture | None:
        """The newest picture that a job has shown; `Values` has its bytes."""
        data = await self._redis.hget(self._keys.job(job_id), "picture")
        event = None if data is None else words.decode(data)
        return event if isinstance(event, Picture) else None

    async def forget(self, view: JobView) -> None:
        """Remove the record and the events of a job that has ended; `Results` has its bytes."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.job(view.id), self._keys.events(view.id))
            pipe.zrem(self._keys.jobs, view.id)
            pipe.zrem(self._keys.jobs_of(view.tenant), view.id)
            pipe.publish(self._keys.changed(view.tenant), view.id)
            await pipe.execute()

    async def prune(self, older_than: float) -> int:
        """Take ids out of the index that came before a Unix time and whose record is gone; returns how many."""
        tenants = await self._redis.hkeys(self._keys.shares)
        pruned = 0
        for index in (self._keys.jobs, *(self._keys.jobs_of(tenant.decode()) for tenant in tenants)):
            kept = 0
            while ids := await self._redis.zrangebyscore(index, "-inf", older_than * 1000, kept, _BATCH):
                async with self._redis.pipeline(transaction=False) as pipe:
                    for job_id in ids:
                        pipe.exists(self._keys.job(job_id.decode()))
                    there = await pipe.execute()
                gone = [job_id for job_id, is_there in zip(ids, there, strict=True) if not is_there]
                pruned += await self._redis.zrem(index, *gone) if gone else 0
                kept += len(ids) - len(gone)
        return pruned

    async def newest_event(self, job_id: str) -> tuple[str, bool]:
        """The id of a job's newest event, and whether it is its last. Raises UnknownJob."""
        entries = await self._redis.xrevrange(self._keys.events(job_id), count=1)
        if not entries:
            raise _unknown(job_id)
        entry, fields = entries[0]
        return entry.decode(), isinstance(words.decode(fields[b"e"]), Ended)

    async def _batches(self, index: str, before: _Position | None) -> AsyncIterator[Sequence[_Position]]:
        """All (moment, id) of an index behind a position, the newest first; ids of one moment in the index's order."""
        passed = 0  # entries of the moment ``before`` that a batch was full of
        while True:
            newest = "+inf" if before is None else before[0]
            entries = await self._redis.zrevrangebyscore(index, newest, "-inf", passed, _BATCH, withscores=True)
            batch = [(int(score), member) for member, score in entries]
            if left := [one for one in batch if before is None or one < before]:
                yield left
            if len(batch) < _BATCH:
                return
            same = before is not None and batch[-1][0] == before[0]
            passed = passed + len(batch) if same else 0
            before = min(left, default=before)

    async def _views(self, ids: Iterable[bytes]) -> Sequence[JobView | None]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(self._keys.job(job_id.decode()), *_FIELDS)
            return [_view(*found) for found in await pipe.execute()]

    async def _placed(self, view: JobView) -> JobView:
        place = await self._queue.place(view.id) if view.state is JobState.QUEUED else None
        if place is None:
            return view
        standing = Standing(ahead=place.ahead, seconds=place.seconds, reason=place.reason)
        return view.model_copy(update={"place": standing, "text": place.sentence})


def _view(
    record: bytes | None,
    state: bytes,
    last: bytes,
    attempts: bytes,
    submitted: bytes | None,
    started: bytes | None,
    ended: bytes | None,
    used: bytes | None,
    progress: bytes | None,
) -> JobView | None:
    if record is None:
        return None
    job, event = Job.model_validate_json(record), words.decode(last)
    end = event if isinstance(event, Ended) else None
    return JobView(
        id=job.id,
        tenant=job.tenant,
        model=job.model.repo_id,
        slug=job.model.slug,
        method=job.method.ref if job.method else None,
        state=JobState(state.decode()),
        text=event.text if isinstance(event, StateChanged | Ended) else "",
        submitted=_seconds(submitted) or job.submitted_at,
        started=_seconds(started),
        ended=_seconds(ended),
        attempts=int(attempts),
        progress=_progress(progress) if state == b"running" else None,
        cost=end.cost.model_copy(update={"runtime": end.cost.runtime or _seconds(used)}) if end else None,
        result_size=end.result.size if end and end.result else None,
    )


def _progress(data: bytes | None) -> Progress | None:
    event = None if data is None else words.decode(data)
    return event if isinstance(event, Progress) else None


def _is_asked_for(view: JobView, tenant: str | None, state: JobState | None, model: str | None) -> bool:
    return tenant in (None, view.tenant) and state in (None, view.state) and model in (None, view.model, view.slug)


def _position(cursor: str | None) -> _Position | None:
    if cursor is None:
        return None
    if not re.fullmatch(CURSOR, cursor):
        raise InvalidRequest(f"`cursor` is {cursor[:80]!r}; expected what `next` was on the page before.")
    moment, _, job_id = cursor.partition("-")
    return int(moment), job_id.encode()


def _seconds(milliseconds: bytes | None) -> float | None:
    return None if not milliseconds else int(milliseconds) / 1000


def _unknown(job_id: str) -> UnknownJob:
    return UnknownJob(f"There is no job {job_id}: it never was, its lifetime is over, or it is not yours.")
