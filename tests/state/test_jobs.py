"""Jobs are listed the newest first, in pages, to whom they belong; what is over its lifetime is not."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from meeting import MODEL, lease, make_job

from interlace.protocol.errors import InvalidRequest, UnknownJob
from interlace.protocol.event import Ended, Picture, Progress, StateChanged
from interlace.protocol.job import Cost, Job, JobState, ResultRef
from interlace.protocol.jobs import JobView
from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.store import State

OTHER = ModelKey(repo_id="tests/other")


async def put(state: State, tenant: str = "local", model: ModelKey = MODEL) -> Job:
    job = make_job(model=model).model_copy(update={"tenant": tenant})
    await state.queue.submit(job, waiting_jobs=10_000, running_jobs=100, kept_jobs=10_000, model_ready=True)
    return job


def ids(jobs: Sequence[Job | JobView]) -> list[str]:
    return [job.id for job in jobs]


async def test_pages_hold_every_job_once_the_newest_first(state: State) -> None:
    jobs = []
    for _ in range(23):
        jobs.append(await put(state))
        await asyncio.sleep(0.002)  # the index counts milliseconds
    seen: list[JobView] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        page = await state.jobs.list("local", before=cursor, limit=5)
        assert len(page.jobs) <= 5
        seen += page.jobs
        cursor, pages = page.next, pages + 1
    assert ids(seen) == ids(jobs)[::-1]
    assert pages == 5
    assert {(job.state, job.tenant, job.model, job.slug) for job in seen} == {
        (JobState.QUEUED, "local", MODEL.repo_id, MODEL.slug)
    }


async def test_jobs_of_one_moment_are_all_seen(state: State, config: Config) -> None:
    """More than are looked at in one go have come in the same millisecond."""
    jobs = [await put(state) for _ in range(450)]
    await state.redis.zadd(Keys(config.redis.prefix).jobs_of("local"), dict.fromkeys(ids(jobs), 1_700_000_000_000))
    seen, cursor = [], None
    for _ in range(10):
        page = await state.jobs.list("local", before=cursor, limit=120)
        seen += ids(page.jobs)
        if (cursor := page.next) is None:
            break
    assert cursor is None
    assert seen == sorted(ids(jobs), reverse=True)


async def test_each_tenant_has_its_own_and_an_operator_all(state: State) -> None:
    ours, theirs = await put(state, "lab-a"), await put(state, "lab-b")
    assert ids((await state.jobs.list("lab-a")).jobs) == [ours.id]
    assert set(ids((await state.jobs.list(None)).jobs)) == {ours.id, theirs.id}
    assert (await state.jobs.list("lab-c")).jobs == []
    assert (await state.jobs.show(theirs.id, None)).tenant == "lab-b"
    with pytest.raises(UnknownJob) as stolen:
        await state.jobs.show(theirs.id, "lab-a")
    with pytest.raises(UnknownJob) as made_up:
        await state.jobs.show("0" * 32, "lab-a")
    assert str(stolen.value).replace(theirs.id, "X") == str(made_up.value).replace("0" * 32, "X")


async def test_filters(state: State) -> None:
    first, other = await put(state), await put(state, model=OTHER)
    assert (await lease(state)).job.id == first.id
    held = await lease(state, model=OTHER)
    await state.queue.finish(held, Ended(state=JobState.ERROR, text="boom"))
    failed = await state.jobs.list("local", state=JobState.ERROR)
    assert ids(failed.jobs) == [other.id]
    for name in (OTHER.repo_id, OTHER.slug):
        assert ids((await state.jobs.list("local", model=name)).jobs) == [other.id]
    assert (await state.jobs.list("local", model="tests/nothing")).jobs == []


async def test_a_filter_that_finds_little_does_not_hold_up_the_server(state: State) -> None:
    wanted = await put(state, model=OTHER)
    for _ in range(2_300):
        await put(state)
    page = await state.jobs.list("local", model=OTHER.slug)
    assert page.jobs == []
    assert page.next is not None
    rest = await state.jobs.list("local", model=OTHER.slug, before=page.next)
    assert (ids(rest.jobs), rest.next) == ([wanted.id], None)


async def test_what_is_over_its_lifetime_leaves_the_list(state: State, config: Config) -> None:
    keys = Keys(config.redis.prefix)
    gone, kept = await put(state), await put(state)
    await state.redis.delete(keys.job(gone.id))
    for tenant, index in (("local", keys.jobs_of("local")), (None, keys.jobs)):
        assert ids((await state.jobs.list(tenant)).jobs) == [kept.id]
        assert await state.redis.zscore(index, gone.id) is None
    with pytest.raises(UnknownJob):
        await state.jobs.show(gone.id, "local")


async def test_a_job_is_shown_from_its_wait_to_its_end(state: State) -> None:
    await put(state)
    job = await put(state)
    waiting = await state.jobs.show(job.id, "local")
    assert waiting.state is JobState.QUEUED
    assert waiting.place is not None
    assert waiting.place.ahead == 1
    assert (waiting.started, waiting.ended, waiting.cost, waiting.result_size) == (None, None, None, None)
    assert abs(waiting.submitted - job.submitted_at) < 60
    held = [await lease(state), await lease(state)]
    (ours,) = [one for one in held if one.job.id == job.id]
    await state.queue.record(ours, StateChanged(state=JobState.RUNNING, text="It runs."))
    running = await state.jobs.show(job.id, "local")
    assert (running.state, running.text, running.attempts, running.place) == (JobState.RUNNING, "It runs.", 1, None)
    cost = Cost(runtime=0.5)
    end = Ended(state=JobState.COMPLETED, text="Done.", result=ResultRef(size=7), cost=cost)
    await state.queue.finish(ours, end)
    ended = await state.jobs.show(job.id, "local")
    assert (ended.state, ended.text, ended.cost, ended.result_size) == (JobState.COMPLETED, "Done.", cost, 7)
    assert ended.started is not None
    assert ended.ended is not None
    assert ended.submitted <= ended.started <= ended.ended


async def test_a_forgotten_job_is_nowhere(state: State, config: Config) -> None:
    kept, job = await put(state), await put(state)
    await state.queue.cancel(job.id, "enough")
    await state.jobs.forget(await state.jobs.show(job.id, "local"))
    with pytest.raises(UnknownJob):
        await state.jobs.show(job.id, "local")
    with pytest.raises(UnknownJob):
        await state.jobs.newest_event(job.id)
    keys = Keys(config.redis.prefix)
    for index in (keys.jobs, keys.jobs_of("local")):
        assert await state.redis.zscore(index, job.id) is None
    left = [name async for name in state.redis.scan_iter(f"{config.redis.prefix}*{job.id}*")]
    assert left == []
    assert ids((await state.jobs.list(None)).jobs) == [kept.id]


async def test_the_newest_event(state: State) -> None:
    job = await put(state)
    first, ended = await state.jobs.newest_event(job.id)
    assert not ended
    await state.queue.cancel(job.id, "enough")
    last, ended = await state.jobs.newest_event(job.id)
    assert ended
    assert last != first


@pytest.mark.parametrize("cursor", ["", "x", "12", "12-", "-12", "99999999999999999-ab", "1-ab\n"])
async def test_a_cursor_that_is_none(state: State, cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="expected what `next` was"):
        await state.jobs.list("local", before=cursor)


async def test_the_collector_takes_out_what_is_over_its_lifetime_and_nothing_else(state: State, config: Config) -> None:
    keys = Keys(config.redis.prefix)
    gone, old, young = [await put(state, tenant) for tenant in ("lab-a", "lab-b", "lab-a")]
    for job in (gone, old):
        for index in (keys.jobs, keys.jobs_of(job.tenant)):
            await state.redis.zadd(index, {job.id: 1_000_000})
    await state.redis.delete(keys.job(gone.id))
    assert await state.jobs.prune(2_000) == 2
    assert {one.decode() for one in await state.redis.zrange(keys.jobs, 0, -1)} == {old.id, young.id}
    assert await state.redis.zrange(keys.jobs_of("lab-a"), 0, -1) == [young.id.encode()]


async def test_the_newest_picture(state: State) -> None:
    job = await put(state)
    assert await state.jobs.picture(job.id) is None
    held = await lease(state)
    first, second = (Picture(number=number, title="by now", step=number, size=2) for number in (1, 2))
    assert await state.queue.record(held, first, Progress(step=1), second)
    assert await state.jobs.picture(job.id) == second
    assert await state.queue.record(held, first)  # of a run that has begun anew
    assert await state.jobs.picture(job.id) == first
    await state.values.keep(job.id, 1, b"ab")
    assert await state.values.read(job.id, 1) == b"ab"
    assert await state.events.value(job.id, 1) is None
    await state.queue.finish(held, Ended(state=JobState.COMPLETED))
    await state.jobs.forget(await state.jobs.show(job.id, "local"))
    assert await state.jobs.picture(job.id) is None


async def test_changes_of_a_tenants_list_are_of_its_own_jobs(state: State) -> None:
    async with aclosing(state.events.changes("lab-a", 0)) as own, aclosing(state.events.changes(None, 0)) as every:
        await anext(own)
        await anext(every)
        await put(state, "lab-b")
        await asyncio.wait_for(anext(every), 60)
        told = asyncio.create_task(anext(own))
        await asyncio.wait({told}, timeout=0.5)
        assert not told.done()
        await put(state, "lab-a")
        await asyncio.wait_for(told, 60)
