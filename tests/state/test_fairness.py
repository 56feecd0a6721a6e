"""Whose turn it is: used seconds over weight, whoever queues however much; and where a job stands meanwhile."""

import asyncio
import secrets
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meeting import MODEL, lease, make_job, submit

from interlace.protocol.errors import IdempotencyConflict, InvalidRequest
from interlace.protocol.event import Ended
from interlace.protocol.job import JobState
from interlace_state.config import Config, LimitChanges, RedisConfig, StoreConfig, TenantConfig
from interlace_state.keys import Keys
from interlace_state.queue import Lease
from interlace_state.store import State, open_state

DONE = Ended(state=JobState.COMPLETED)


async def use(state: State, config: Config, held: Lease, seconds: float) -> None:
    """Let a held job have run for so long; Redis counts the time, so it is told."""
    name = Keys(config.redis.prefix).job(held.job.id)
    await state.redis.hincrby(name, "charged_ms", -int(seconds * 1000))


async def run_next(state: State, config: Config, seconds: float) -> str:
    """Run the job whose turn it is; returns its tenant."""
    held = await lease(state)
    await use(state, config, held, seconds)
    await state.queue.finish(held, DONE)
    return held.job.tenant


async def queue_up(state: State, tenant: str, count: int) -> None:
    for _ in range(count):
        await submit(state, make_job(tenant=tenant), waiting_jobs=1000)


async def test_a_tenant_who_queues_much_delays_anothers_only_job_by_the_one_that_runs(
    state: State, config: Config
) -> None:
    await queue_up(state, "much", 200)
    for _ in range(5):
        assert await run_next(state, config, 1) == "much"
    running = await lease(state)
    await queue_up(state, "one", 1)
    await use(state, config, running, 1)
    await state.queue.finish(running, DONE)
    assert await run_next(state, config, 1) == "one"


async def test_seconds_count_and_not_jobs(state: State, config: Config) -> None:
    await queue_up(state, "long", 40)
    await queue_up(state, "short", 40)
    used: Counter[str] = Counter()
    for _ in range(33):
        held = await lease(state)
        seconds = 1.5 if held.job.tenant == "long" else 0.15
        await use(state, config, held, seconds)
        await state.queue.finish(held, DONE)
        used[held.job.tenant] += round(seconds * 1000)
    assert abs(used["long"] - used["short"]) <= 1650


async def test_a_weight_buys_as_many_times_the_seconds(state: State, config: Config) -> None:
    await state.control.set_weight("heavy", 3)
    await queue_up(state, "heavy", 40)
    await queue_up(state, "light", 40)
    ran = Counter([await run_next(state, config, 1) for _ in range(20)])
    assert ran == {"heavy": 15, "light": 5}


async def test_a_weight_of_the_configuration_holds_until_an_operator_sets_another(state: State, config: Config) -> None:
    tenants = {"heavy": TenantConfig(weight=3)}
    async with open_state(config.model_copy(update={"tenants": tenants})) as configured:
        await configured.control.publish_weights()
        assert (await configured.control.terms("heavy")).weight == 3
        await configured.control.set_weight("heavy", 2)
        await configured.control.publish_weights()
    assert (await state.control.terms("heavy")).weight == 2
    await queue_up(state, "heavy", 20)
    await queue_up(state, "light", 20)
    assert Counter([await run_next(state, config, 1) for _ in range(12)]) == {"heavy": 8, "light": 4}


async def test_several_workers_take_turns_among_tenants(state: State) -> None:
    await queue_up(state, "a", 10)
    await queue_up(state, "b", 10)
    assert Counter([(await lease(state, f"worker {n}")).job.tenant for n in range(4)]) == {"a": 2, "b": 2}


async def test_who_was_away_has_no_claim_on_what_it_missed(state: State, config: Config) -> None:
    await queue_up(state, "away", 1)
    await run_next(state, config, 1)
    await queue_up(state, "busy", 30)
    for _ in range(10):
        await run_next(state, config, 1)
    await queue_up(state, "away", 30)
    ran = Counter([await run_next(state, config, 1) for _ in range(10)])
    assert max(ran.values()) <= 6


async def test_a_worker_that_goes_silent_costs_its_tenant_at_most_a_lease(state: State, config: Config) -> None:
    await queue_up(state, "mine", 1)
    held = await lease(state)
    await use(state, config, held, 10_000)
    await state.queue.renew(held)
    fair = await state.redis.hgetall(Keys(config.redis.prefix).fair(MODEL.slug))
    assert float(fair[b"t:mine"]) == pytest.approx(config.lifetimes.lease, abs=0.5)


@pytest.mark.parametrize("hours", [-5, 5])
async def test_a_clock_that_jumps_loses_no_job_and_no_fairness(state: State, config: Config, hours: int) -> None:
    """Everything that Redis has noted is as far off as its clock would have jumped."""
    keys = Keys(config.redis.prefix)
    await queue_up(state, "mine", 2)
    held = await lease(state, "a")
    await state.redis.zincrby(keys.leases(MODEL.slug), -hours * 3_600_000, held.job.id)
    await use(state, config, held, hours * 3600)
    assert await state.queue.renew(held)
    fair = await state.redis.hgetall(keys.fair(MODEL.slug))
    assert 0 < float(fair[b"t:mine"]) <= config.lifetimes.lease + 0.5
    (seconds, _) = await state.redis.time()
    assert abs(await state.redis.zscore(keys.leases(MODEL.slug), held.job.id) / 1000 - seconds) < 10
    assert (await lease(state, "b")).job != held.job
    assert await state.queue.finish(held, DONE)


async def test_a_lease_from_before_the_clock_went_back_still_lapses(state: State, config: Config) -> None:
    keys = Keys(config.redis.prefix)
    await queue_up(state, "mine", 1)
    held = await lease(state, "dead")
    await state.redis.zincrby(keys.leases(MODEL.slug), 3_600_000, held.job.id)
    found = None
    for _ in range(10):
        found = found or await state.queue.lease(MODEL, "b")
    assert found is not None
    assert (found.job, found.attempt) == (held.job, 2)


async def test_a_place_is_how_many_will_go_first(state: State, config: Config) -> None:
    jobs = []
    for tenant, count in (("much", 10), ("some", 3)):
        for _ in range(count):
            jobs.append(make_job(tenant=tenant))
            await submit(state, jobs[-1])
    await run_next(state, config, 1)  # the first of "much": a job takes a second
    places = {job.id: place for job in jobs if (place := await state.queue.place(job.id))}
    running = await lease(state)
    order = [running.job.id]
    told = await state.queue.place(jobs[-1].id)
    await state.queue.finish(running, DONE)
    for _ in range(11):
        held = await lease(state)
        order.append(held.job.id)
        await use(state, config, held, 1)
        await state.queue.finish(held, DONE)
    assert told is not None
    assert told.seconds is not None
    assert 0 < told.seconds < 20
    wrong = [abs(places[job_id].ahead - ran) for ran, job_id in enumerate(order)]
    assert max(wrong) <= 1


async def test_the_oldest_job_that_waits(state: State) -> None:
    assert await state.queue.oldest(MODEL) is None
    await queue_up(state, "a", 1)
    await asyncio.sleep(0.05)
    await queue_up(state, "b", 1)
    first = await state.queue.oldest(MODEL)
    await lease(state)
    second = await state.queue.oldest(MODEL)
    assert first is not None
    assert second is not None
    assert 0.04 < second - first < 5
    await lease(state)
    assert await state.queue.oldest(MODEL) is None
    assert (await state.queue.length(MODEL), await state.queue.running(MODEL)) == (2, 2)


async def test_what_does_not_wait_has_no_place(state: State) -> None:
    await queue_up(state, "mine", 1)
    held = await lease(state)
    await state.queue.finish(held, DONE)
    assert await state.queue.place(held.job.id) is None
    assert await state.queue.place("0" * 32) is None


async def test_a_paused_model_starts_nothing_and_a_resumed_one_wakes_its_workers(state: State) -> None:
    await queue_up(state, "mine", 1)
    await state.control.pause(MODEL)
    assert await state.control.is_paused(MODEL)
    assert await state.queue.lease(MODEL, "one") is None
    waiting = asyncio.create_task(state.queue.lease(MODEL, "one"))
    await state.control.resume(MODEL)
    assert await waiting is not None


async def test_a_drained_replica_gets_no_job_and_others_do(state: State) -> None:
    await queue_up(state, "mine", 2)
    await state.control.drain("one")
    assert await state.control.drained() == {"one"}
    assert await state.queue.lease(MODEL, "one") is None
    assert await state.queue.lease(MODEL, "two") is not None
    await state.control.undrain("one")
    assert await state.queue.lease(MODEL, "one") is not None


async def test_limits_that_an_operator_sets_hold_at_once(state: State, config: Config) -> None:
    await queue_up(state, "mine", 3)
    await lease(state)
    await state.control.set_limits("mine", LimitChanges(running_jobs=1, wall_seconds=5))
    assert await state.queue.lease(MODEL, "two") is None
    limits = await state.control.limits_of("mine", "user")
    assert (limits.running_jobs, limits.wall_seconds) == (1, 5)
    assert limits.log_bytes == config.limits.log_bytes
    assert await state.control.limits_of("other", "user") == config.limits


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), 1e9])
async def test_an_impossible_weight_is_refused(state: State, weight: float) -> None:
    with pytest.raises(InvalidRequest, match="more than 0"):
        await state.control.set_weight("mine", weight)


async def test_one_idempotency_key_is_one_job(state: State) -> None:
    async def send(payload: str, session: str = "", tenant: str = "local") -> tuple[str, str, bool]:
        job = make_job(session, tenant=tenant)
        sent = await state.queue.submit(
            job, waiting_jobs=9, running_jobs=9, model_ready=True, idempotency=("key", payload)
        )
        return job.id, sent.job_id, sent.replayed

    asked, job_id, replayed = await send("one")
    assert (asked, replayed) == (job_id, False)
    session = await state.sessions.open("local")
    assert (await send("one", session))[1:] == (job_id, True)
    assert await state.sessions.job_of(session) == job_id
    with pytest.raises(IdempotencyConflict):
        await send("two")
    assert (await send("two", tenant="lab-b"))[2] is False
    assert await state.queue.length(MODEL) == 2


async def test_nothing_is_left_of_jobs_that_ended_but_what_is_kept(state: State, config: Config) -> None:
    for tenant in ("a", "b"):
        await queue_up(state, tenant, 3)
    for _ in range(6):
        await run_next(state, config, 1)
    for kind in ("queue", "turn", "tenants", "leases", "live", "running"):
        found = [key async for key in state.redis.scan_iter(f"{config.redis.prefix}{kind}:*")]
        assert found == [], kind


async def test_the_audit_log_tells_every_end(state: State) -> None:
    jobs = [make_job() for _ in range(3)]
    for job in jobs:
        await submit(state, job)
    await state.queue.finish(await lease(state), DONE)
    await state.queue.cancel(jobs[1].id, "enough")
    await state.queue.fail_waiting(MODEL, "no weights")
    lines = [line for line in state.audit.path.read_text().splitlines() if any(job.id in line for job in jobs)]
    assert [outcome in line for outcome, line in zip(("completed", "cancelled", "error"), lines, strict=True)] == [
        True
    ] * 3


STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["submit", "run", "give back", "cancel"]), st.integers(1, 30)),
    min_size=5,
    max_size=40,
)


@given(steps=STEPS)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_virtual_time_never_goes_back_and_nobody_starves(
    steps: list[tuple[str, str, int]], redis_url: str, tmp_path: Path
) -> None:
    asyncio.run(_any_order(steps, redis_url, tmp_path))


async def _any_order(steps: list[tuple[str, str, int]], redis_url: str, folder: Path) -> None:
    async with AsyncExitStack() as stack:
        prefix = f"test:{secrets.token_hex(4)}:"
        config = Config(
            redis=RedisConfig(url=redis_url, prefix=prefix), store=StoreConfig(url=str(folder)), state_dir=folder
        )
        state = await stack.enter_async_context(open_state(config))
        fair = Keys(prefix).fair(MODEL.slug)
        before: dict[bytes, float] = {}
        waiting: list[str] = []
        for tenant, step, tenths in steps:
            if step == "submit" or not waiting:
                await submit(state, job := make_job(tenant=tenant))
                waiting.append(job.id)
            elif step == "cancel":
                await state.queue.cancel(waiting.pop(), "enough")
            else:
                held = await lease(state)
                await use(state, config, held, tenths / 10)
                if step == "run":
                    await state.queue.finish(held, DONE)
                    waiting.remove(held.job.id)
                else:
                    await state.queue.give_back(held, "restart")
            now = {
                name: float(value)
                for name, value in (await state.redis.hgetall(fair)).items()
                if name == b"clock" or name.startswith(b"t:")
            }
            assert all(now[name] >= value for name, value in before.items())
            before = now
        # Nobody starves: all that still wait run to their end, and none is left.
        for _ in range(len(waiting)):
            held = await lease(state)
            waiting.remove(held.job.id)
            await state.queue.finish(held, DONE)
        assert waiting == []
        assert await state.queue.length(MODEL) == 0
