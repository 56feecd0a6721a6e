"""Jobs for a test's queue, and the passing of a lease's time without waiting for it."""

import secrets
import time

from interlace.protocol.event import Ended, Event, decode
from interlace.protocol.job import Job, Limits
from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.queue import Lease
from interlace_state.store import State

MODEL = ModelKey(repo_id="tests/model")


def make_job(session_id: str = "", model: ModelKey = MODEL, tenant: str = "local") -> Job:
    return Job(
        id=secrets.token_hex(16),
        tenant=tenant,
        model=model,
        compress=True,
        limits=Limits(),
        session_id=session_id,
        payload_bytes=0,
        submitted_at=time.time(),
    )


async def submit(
    state: State, job: Job, waiting_jobs: int = 100, running_jobs: int = 100, kept_jobs: int = 10_000
) -> int:
    limits = {"waiting_jobs": waiting_jobs, "running_jobs": running_jobs, "kept_jobs": kept_jobs}
    submitted = await state.queue.submit(job, **limits, model_ready=True)
    return submitted.place


async def submitted(state: State, tenant: str = "local", model: ModelKey = MODEL) -> Job:
    job = make_job(tenant=tenant, model=model)
    await submit(state, job, waiting_jobs=1000)
    return job


async def lease(state: State, worker: str = "one", model: ModelKey = MODEL) -> Lease:
    """The next lease."""
    found = await state.queue.lease(model, worker)
    assert found is not None
    return found


async def lapse(state: State, config: Config, held: Lease) -> None:
    """Let the worker have been silent for an hour; Redis counts the time, so it is told."""
    keys = Keys(config.redis.prefix)
    (seconds, _) = await state.redis.time()
    await state.redis.zadd(keys.leases(held.job.model.slug), {held.job.id: (seconds - 3600) * 1000}, xx=True)


async def history(state: State, job: Job) -> list[Event]:
    """All events of a job that has ended."""
    return [event async for _, event in state.events.follow(job.id)]


async def ends(state: State, config: Config, job: Job) -> list[str]:
    """The texts of the last events that a job has got, however many."""
    entries = await state.redis.xrange(Keys(config.redis.prefix).events(job.id))
    return [event.text for _, fields in entries if isinstance(event := decode(fields[b"e"]), Ended)]
