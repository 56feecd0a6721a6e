"""Two workers and one job: what a worker says after it has lost its lease is not heard, and no job is lost."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from meeting import MODEL, ends, history, lapse, lease, make_job, submit, submitted

from interlace.protocol.errors import SessionRefused
from interlace.protocol.event import Ended, Log, StateChanged
from interlace.protocol.job import JobState
from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.queue import Lease
from interlace_state.store import State, open_state

RUNNING = StateChanged(state=JobState.RUNNING)


def done(text: str) -> Ended:
    return Ended(state=JobState.COMPLETED, text=text)


@pytest.fixture
def keys(config: Config) -> Keys:
    return Keys(config.redis.prefix)


@pytest.fixture
async def other(config: Config) -> AsyncIterator[State]:
    """A second worker's connection."""
    async with open_state(config) as opened:
        yield opened


@pytest.fixture
async def two_leases(state: State, other: State, config: Config) -> tuple[Lease, Lease]:
    """One job's lease that lapsed, of worker "a", and the one that worker "b" has now."""
    await submitted(state)
    lapsed = await lease(state, "a")
    await lapse(state, config, lapsed)
    return lapsed, await lease(other, "b")


async def test_a_lapsed_lease_is_followed_by_another_one(two_leases: tuple[Lease, Lease]) -> None:
    lapsed, held = two_leases
    assert lapsed.job == held.job
    assert [(one.attempt, one.fence) for one in two_leases] == [(1, 1), (2, 2)]


async def test_a_worker_that_comes_back_does_not_steal_its_job(
    state: State, other: State, keys: Keys, two_leases: tuple[Lease, Lease]
) -> None:
    lapsed, held = two_leases
    assert not await state.queue.renew(lapsed)
    assert await state.redis.hget(keys.job(held.job.id), "worker") == b"b"
    assert await other.queue.renew(held)


async def test_two_slots_of_one_worker_are_two_holders(state: State, config: Config) -> None:
    await submitted(state)
    lapsed = await lease(state, "a")
    await lapse(state, config, lapsed)
    async with open_state(config) as slot:
        held = await lease(slot, "a")
    assert not await state.queue.renew(lapsed)
    assert not await state.queue.record(lapsed, RUNNING)
    assert await state.queue.renew(held)


async def test_late_events_do_not_follow_the_last_one(
    state: State, other: State, two_leases: tuple[Lease, Lease]
) -> None:
    lapsed, held = two_leases
    assert not await state.queue.record(lapsed, RUNNING, Log(text="late"))
    assert await other.queue.record(held, RUNNING, Log(text="in time"))
    assert await other.queue.finish(held, done("b"))
    assert not await state.queue.record(lapsed, RUNNING)
    assert not await other.queue.record(held, RUNNING)
    events = await history(state, held.job)
    assert [event.text for event in events if isinstance(event, Log)] == ["in time"]
    assert await state.events.last(held.job.id, held.job.tenant) == done("b")


@pytest.mark.parametrize("first", ["a", "b"])
async def test_only_the_holder_of_the_lease_ends_a_job(
    state: State, other: State, config: Config, two_leases: tuple[Lease, Lease], first: str
) -> None:
    lapsed, held = two_leases
    finishes = [(state, lapsed, "a"), (other, held, "b")]
    for where, its_lease, text in finishes if first == "a" else reversed(finishes):
        assert await where.queue.finish(its_lease, done(text)) is (text == "b")
        assert await state.queue.length(MODEL) == (text == "a" and first == "a")
    assert await ends(state, config, held.job) == ["b"]
    assert await state.queue.length(MODEL) == 0


async def test_a_job_cannot_be_given_back_by_one_who_has_lost_it(
    state: State, other: State, two_leases: tuple[Lease, Lease]
) -> None:
    lapsed, held = two_leases
    await state.queue.give_back(lapsed, "late")
    assert await state.queue.length(MODEL) == 1
    assert await other.queue.record(held, RUNNING)


async def test_a_job_that_was_given_back_is_no_longer_ones_own(state: State, config: Config) -> None:
    job = await submitted(state)
    held = await lease(state)
    await state.queue.give_back(held, "first")
    await state.queue.give_back(held, "again")
    assert not await state.queue.renew(held)
    assert not await state.queue.record(held, RUNNING)
    assert not await state.queue.finish(held, done("late"))
    assert await state.queue.length(MODEL) == 1
    assert await ends(state, config, job) == []


async def test_giving_back_uses_up_no_attempt(state: State) -> None:
    await submitted(state)
    fences = []
    for _ in range(5):
        held = await lease(state)
        assert held.attempt == 1
        fences.append(held.fence)
        await state.queue.give_back(held, "restart")
    assert fences == sorted(set(fences))


async def test_an_answer_that_got_lost_is_asked_for_again(state: State, config: Config) -> None:
    """redis-py repeats a command when the connection breaks; nothing may happen twice."""
    job = await submitted(state)
    held = await lease(state)
    assert await state.queue.finish(held, done("once"))
    assert await state.queue.finish(held, done("once"))
    assert not await state.queue.finish(held, done("other"))
    assert await ends(state, config, job) == ["once"]


async def test_a_lapsed_job_behind_many_live_ones_is_found(state: State, other: State, config: Config) -> None:
    for _ in range(30):
        await submitted(state)
    held = [await lease(state, "a") for _ in range(30)]
    await lapse(state, config, held[25])
    assert (await lease(other, "b")).job == held[25].job


async def test_a_lost_redis_is_no_error_of_a_worker(state: State, keys: Keys) -> None:
    await submitted(state)
    held = await lease(state)
    waiting = asyncio.create_task(state.queue.lease(MODEL, "one"))
    await asyncio.sleep(0.1)
    await state.redis.delete(keys.queue(MODEL.slug, "local"), keys.leases(MODEL.slug))
    assert not await state.queue.renew(held)
    assert await waiting is None
    await state.redis.delete(keys.job(held.job.id), keys.events(held.job.id))
    assert not await state.queue.renew(held)
    assert not await state.queue.record(held, RUNNING)
    assert not await state.queue.finish(held, done("late"))
    await state.queue.give_back(held, "late")
    assert await state.queue.lease(MODEL, "one") is None
    assert not await state.redis.exists(keys.job(held.job.id), keys.events(held.job.id))


async def test_a_job_without_its_queue_can_still_end(state: State, config: Config, keys: Keys) -> None:
    job = await submitted(state)
    held = await lease(state)
    await state.redis.delete(keys.queue(MODEL.slug, "local"))
    assert await state.queue.finish(held, done("ran"))
    assert await ends(state, config, job) == ["ran"]


async def test_jobs_that_run_elsewhere_do_not_fail_with_a_replica(state: State, config: Config) -> None:
    running, lapsed, waiting = [await submitted(state) for _ in range(3)]
    held = await lease(state, "a")
    await lapse(state, config, await lease(state, "b"))
    assert await state.queue.fail_waiting(MODEL, "no weights") == 2
    assert [await ends(state, config, job) for job in (running, lapsed, waiting)] == [
        [],
        ["no weights"],
        ["no weights"],
    ]
    assert await state.queue.finish(held, done("ran"))


async def test_waiting_jobs_fail_before_any_worker_was_there(state: State) -> None:
    await submitted(state)
    assert await state.queue.fail_waiting(MODEL, "no weights") == 1
    assert await state.queue.length(MODEL) == 0


async def test_jobs_of_others_do_not_wait_behind_those_that_may_not_run(state: State) -> None:
    await submit(state, make_job(), running_jobs=1)
    held = await lease(state, "a")
    for _ in range(50):
        await submit(state, make_job(), running_jobs=1)
    other = make_job().model_copy(update={"tenant": "other"})
    await submit(state, other)
    taken = await state.queue.lease(MODEL, "b")
    assert taken is not None
    assert (taken.job, taken.attempt) == (other, 1)
    assert await state.queue.lease(MODEL, "b") is None
    assert await state.queue.finish(held, done("a"))
    assert (await lease(state, "b")).attempt == 1


async def test_jobs_whose_lifetime_is_over_are_not_counted(state: State, keys: Keys) -> None:
    job = make_job()
    await submit(state, job, waiting_jobs=1, running_jobs=1)
    held = await lease(state)
    await state.redis.delete(keys.job(job.id), keys.events(job.id))
    assert not await state.queue.finish(held, done("late"))
    await submit(state, make_job(), waiting_jobs=1, running_jobs=1)
    assert (await lease(state, "two")).attempt == 1


@pytest.mark.parametrize("had", ["leased", "given back", "parted", "never"])
async def test_a_job_that_outlives_its_record_does_not_stay_in_the_queue(state: State, keys: Keys, had: str) -> None:
    """A model whose queue is not empty never rests."""
    gone = await submitted(state)
    if had != "never":
        held = await lease(state)
        if had == "given back":
            await state.queue.give_back(held, "restart")
        elif had == "parted":
            await state.queue.part(held, "alone")
    there = await submitted(state)
    await state.redis.delete(keys.job(gone.id), keys.events(gone.id))
    assert await state.queue.sweep(MODEL, there.submitted_at - 3600) == 0
    assert await state.queue.sweep(MODEL, there.submitted_at + 3600) == 1
    assert await state.queue.length(MODEL) == 1
    place = await state.queue.place(there.id)
    assert place is not None
    assert place.ahead == 0
    assert await state.queue.finish(await lease(state, "two"), done("the other"))
    assert await state.queue.length(MODEL) == 0


async def test_a_withdrawn_model_ends_running_jobs_and_their_workers_hear_of_it(state: State, config: Config) -> None:
    job = await submitted(state)
    held = await lease(state)
    assert await state.queue.fail_all(MODEL, "withdrawn") == 1
    assert not await state.queue.renew(held)
    assert not await state.queue.finish(held, done("late"))
    assert await ends(state, config, job) == ["withdrawn"]


@pytest.mark.parametrize("sign_of_life", ["lease", "renew", "give_back"])
async def test_a_job_is_kept_while_it_runs(state: State, config: Config, keys: Keys, sign_of_life: str) -> None:
    job = await submitted(state)
    held = None if sign_of_life == "lease" else await lease(state)
    for key in (keys.job(job.id), keys.events(job.id)):
        await state.redis.expire(key, config.lifetimes.waiting // 2)
    if held is None:
        await lease(state)
    elif sign_of_life == "renew":
        await state.queue.renew(held)
    else:
        await state.queue.give_back(held, "restart")
    for key in (keys.job(job.id), keys.events(job.id)):
        assert await state.redis.ttl(key) > config.lifetimes.waiting - 60


async def test_a_session_that_redis_has_lost_is_refused(state: State, keys: Keys) -> None:
    session = await state.sessions.open("local")
    assert await state.sessions.job_of(session) is None
    await state.redis.delete(keys.session(session))
    with pytest.raises(SessionRefused, match="gone"):
        await state.sessions.job_of(session)


async def test_models_do_not_share_a_queue(state: State) -> None:
    key = ModelKey(repo_id="tests/other")
    job = make_job(model=key)
    await submit(state, job)
    assert await state.queue.fail_all(MODEL, "withdrawn") == 0
    assert (await lease(state, model=key)).job == job
