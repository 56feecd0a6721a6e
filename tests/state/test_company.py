"""Jobs that are leased beside another, to share its forward: which, how many, and what they cost their tenant."""

import pytest
from meeting import MODEL, lapse, lease, make_job, submit

from interlace.protocol.event import Ended
from interlace.protocol.job import Job, JobState
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.queue import Lease
from interlace_state.store import State

DONE = Ended(state=JobState.COMPLETED)


async def queue_up(
    state: State, count: int, tenant: str = "local", running_jobs: int = 100, **changes: object
) -> list[Job]:
    jobs = [make_job(tenant=tenant).model_copy(update=changes) for _ in range(count)]
    for job in jobs:
        await submit(state, job, running_jobs=running_jobs)
    return jobs


async def company(state: State, held: Lease, most: int = 31) -> list[Lease]:
    return await state.queue.company(held, "one", most)


async def used(state: State, config: Config, tenant: str) -> float:
    """A tenant's virtual time, in seconds."""
    return float(await state.redis.hget(Keys(config.redis.prefix).fair(MODEL.slug), f"t:{tenant}") or 0)


async def test_the_tenants_next_jobs_come_along_in_order_each_with_its_own_lease(state: State) -> None:
    jobs = await queue_up(state, 5)
    first = await lease(state)
    assert first.has_company
    found = await company(state, first, 3)
    assert [one.job for one in found] == jobs[1:4]
    assert [(one.attempt, one.fence) for one in found] == [(1, 1)] * 3
    assert found[-1].has_company
    assert await state.queue.running(MODEL) == 4
    for one in [first, *found]:
        assert await state.queue.renew(one)
        assert await state.queue.finish(one, DONE)
        assert not await state.queue.finish(one, DONE.model_copy(update={"text": "again"}))
    assert (await lease(state)).job == jobs[4]
    assert await state.queue.length(MODEL) == 1


async def test_a_job_that_lost_its_worker_is_alone(state: State, config: Config) -> None:
    jobs = await queue_up(state, 3)
    first = await lease(state)
    assert first.has_company
    await lapse(state, config, first)
    again = await lease(state)
    assert (again.job, again.attempt, again.has_company) == (jobs[0], 2, False)


@pytest.mark.parametrize(
    "env", [{"attn_implementation": "eager"}, {"attn_implementation": "sdpa", "peft": "org/name"}, {}]
)
async def test_a_job_that_wants_another_model_environment_does_not_come_along(
    state: State, env: dict[str, object]
) -> None:
    await queue_up(state, 1, env={"attn_implementation": "sdpa"})
    await queue_up(state, 1, env=env)
    first = await lease(state)
    assert not first.has_company
    assert await company(state, first) == []


async def test_another_tenants_job_does_not_come_along(state: State) -> None:
    await queue_up(state, 1, "mine")
    await queue_up(state, 3, "theirs")
    held = await lease(state)
    assert held.job.tenant == "mine"
    assert not held.has_company
    assert await company(state, held) == []


@pytest.mark.parametrize("changes", [{"env": {"attn_implementation": "eager"}}, {"compress": False}, {"kind": "other"}])
async def test_the_first_that_differs_ends_it(state: State, changes: dict[str, object]) -> None:
    same = await queue_up(state, 2)
    await queue_up(state, 1, **changes)
    await queue_up(state, 2)
    held = await lease(state)
    assert [one.job for one in await company(state, held)] == same[1:]


async def test_a_job_that_shall_not_share_is_in_no_company(state: State) -> None:
    limits = {"waiting_jobs": 9, "running_jobs": 9, "kept_jobs": 9}
    for _ in range(2):
        await state.queue.submit(make_job(), **limits, model_ready=True, batching=False)
    held = await lease(state)
    assert not held.has_company
    assert await company(state, held) == []


async def test_no_more_run_than_the_tenant_may(state: State) -> None:
    await queue_up(state, 6, running_jobs=3)
    held = await lease(state)
    found = await company(state, held)
    assert len(found) == 2
    assert await company(state, held) == []
    await state.queue.finish(found[0], DONE)
    assert len(await company(state, held)) == 1


async def test_a_lease_that_is_lost_finds_no_company(state: State, config: Config) -> None:
    await queue_up(state, 3)
    lost = await lease(state)
    await lapse(state, config, lost)
    holder = await lease(state, "two")
    assert holder.job == lost.job
    assert await company(state, lost) == []
    assert len(await company(state, holder)) == 2


@pytest.mark.parametrize("at_rest", ["model", "worker"])
async def test_nobody_comes_where_the_model_or_the_worker_is_at_rest(state: State, at_rest: str) -> None:
    await queue_up(state, 3)
    held = await lease(state)
    if at_rest == "model":
        await state.control.pause(MODEL)
    else:
        await state.control.drain("one")
    assert await company(state, held) == []


async def test_a_cancelled_job_is_passed_over(state: State) -> None:
    jobs = await queue_up(state, 4)
    held = await lease(state)
    await state.queue.cancel(jobs[1].id, "enough")
    assert [one.job for one in await company(state, held)] == jobs[2:]


async def test_a_company_whose_worker_goes_silent_is_run_by_others(state: State, config: Config) -> None:
    await queue_up(state, 3)
    held = await lease(state)
    party = [held, *await company(state, held)]
    for one in party:
        await lapse(state, config, one)
    again = [await lease(state, "two") for _ in party]
    assert {one.job.id for one in again} == {one.job.id for one in party}
    assert all(one.attempt == 2 for one in again)
    assert not any([await state.queue.finish(one, DONE) for one in party])
    assert all([await state.queue.finish(one, DONE) for one in again])


async def test_the_seconds_of_a_party_count_once(state: State, config: Config) -> None:
    keys = Keys(config.redis.prefix)
    await queue_up(state, 8, "party")
    held = await lease(state)
    party = [held, *await company(state, held)]
    assert len(party) == 8
    for one in party:  # let 160 seconds have passed; Redis counts the time, so it is told
        await state.redis.hincrby(keys.job(one.job.id), "charged_ms", -160_000)
    await state.redis.hincrby(keys.party(held.job.id), "charged_ms", -160_000)
    for one in party:
        await state.queue.finish(one, DONE)
    assert await used(state, config, "party") == pytest.approx(160, abs=30)
    each = [int(await state.redis.hget(keys.job(one.job.id), "used_ms")) for one in party]
    assert each == pytest.approx([20_000] * 8, abs=4_000)


async def test_parties_and_single_jobs_get_the_same_seconds(state: State, config: Config) -> None:
    """A tenant whose jobs share forwards gets more jobs done in its seconds, and no more seconds."""
    keys = Keys(config.redis.prefix)
    await queue_up(state, 64, "many")
    await queue_up(state, 30, "single", env={"attn_implementation": "eager"})
    seconds, parties = {"many": 0.0, "single": 0.0}, []
    for _ in range(20):
        held = await lease(state)
        tenant = held.job.tenant
        # Parties are as large as where jobs are short; they are said to take long, beside which the test takes nothing.
        await state.redis.hset(keys.fair(MODEL.slug), "seconds", "0.2")
        party = [held, *await company(state, held, 3)] if tenant == "many" else [held]
        took = 80.0 if tenant == "many" else 50.0
        for one in party:
            await state.redis.hincrby(keys.job(one.job.id), "charged_ms", -int(took * 1000))
        if tenant == "many":
            await state.redis.hincrby(keys.party(held.job.id), "charged_ms", -int(took * 1000))
        for one in party:
            await state.queue.finish(one, DONE)
        seconds[tenant] += took
        parties.append(len(party))
    assert abs(seconds["many"] - seconds["single"]) <= 150
    assert set(parties) == {1, 4}


async def test_while_others_wait_a_party_is_what_usually_takes_a_second(state: State, config: Config) -> None:
    await queue_up(state, 20, "many")
    held = await lease(state)
    await queue_up(state, 1, "other")
    await state.redis.hset(Keys(config.redis.prefix).fair(MODEL.slug), "seconds", "0.2")
    assert len(await company(state, held)) == 4


async def test_a_job_that_cannot_share_is_its_tenants_next_and_runs_alone(state: State) -> None:
    jobs = await queue_up(state, 5)
    held = await lease(state)
    party = [held, *await company(state, held, 2)]
    for one in party[1:]:
        await state.queue.part(one, "alone")
        assert not await state.queue.finish(one, DONE)
    assert await state.queue.finish(held, DONE)
    for job in jobs[1:3]:
        alone = await lease(state)
        assert (alone.job, alone.attempt, alone.has_company) == (job, 1, False)
        assert await company(state, alone) == []
        assert await state.queue.finish(alone, DONE)
    last = await lease(state)
    assert [last.job, *[one.job for one in await company(state, last)]] == jobs[3:]


async def test_a_job_that_cannot_share_waits_for_its_tenants_turn(state: State, config: Config) -> None:
    await queue_up(state, 3, "mine")
    held = await lease(state)
    party = [held, *await company(state, held)]
    await queue_up(state, 1, "theirs")
    await state.redis.hincrby(Keys(config.redis.prefix).party(held.job.id), "charged_ms", -5000)
    for one in party:
        await state.queue.part(one, "alone")
    assert [(await lease(state, f"worker {number}")).job.tenant for number in range(4)] == ["theirs", *["mine"] * 3]


async def test_a_parted_job_that_is_cancelled_is_not_run(state: State) -> None:
    jobs = await queue_up(state, 3)
    held = await lease(state)
    for one in [held, *await company(state, held)]:
        await state.queue.part(one, "alone")
    assert await state.queue.cancel(jobs[0].id, "enough")
    assert {(await lease(state)).job.id for _ in range(2)} == {jobs[1].id, jobs[2].id}
    assert await state.queue.length(MODEL) == 2


async def test_a_party_is_what_usually_takes_ten_seconds(state: State, config: Config) -> None:
    await queue_up(state, 20)
    held = await lease(state)
    await state.redis.hset(Keys(config.redis.prefix).fair(MODEL.slug), "seconds", "2")
    assert len(await company(state, held)) == 4
