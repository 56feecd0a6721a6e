"""Whose turn it is: used seconds over weight, whoever queues however much; and where a job stands meanwhile."""

import asyncio
import secrets
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meeting import MODEL, lapse, lease, make_job, submit

from interlace.protocol.errors import IdempotencyConflict, InvalidRequest, UnknownJob
from interlace.protocol.event import Ended
from interlace.protocol.hosting import Moment, Phase
from interlace.protocol.job import JobState
from interlace.protocol.model import ModelKey
from interlace_state import queue
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.models import ModelCard, ModelState, Replica
from interlace_state.queue import Lease
from interlace_state.settings.limits import LimitChanges, TenantConfig
from interlace_state.settings.services import LifetimeConfig, RedisConfig, StoreConfig
from interlace_state.store import State, open_state

OTHER = ModelKey(repo_id="tests/other")
DONE = Ended(state=JobState.COMPLETED)
#: Seconds that a job is told to have run: so many that what the test itself takes changes no turn but a tie.
USUAL = 60.0


async def use(state: State, config: Config, held: Lease, seconds: float) -> None:
    """Let a held job have run for so long; Redis counts the time, so it is told."""
    name = Keys(config.redis.prefix).job(held.job.id)
    await state.redis.hincrby(name, "charged_ms", -int(seconds * 1000))


async def run_next(state: State, config: Config, seconds: float = USUAL) -> str:
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
        assert await run_next(state, config) == "much"
    running = await lease(state)
    await queue_up(state, "one", 1)
    await use(state, config, running, USUAL)
    await state.queue.finish(running, DONE)
    assert await run_next(state, config) == "one"


async def test_seconds_count_and_not_jobs(state: State, config: Config) -> None:
    await queue_up(state, "long", 40)
    await queue_up(state, "short", 40)
    used: Counter[str] = Counter()
    for _ in range(33):
        held = await lease(state)
        seconds = 2.5 * USUAL if held.job.tenant == "long" else USUAL / 4
        await use(state, config, held, seconds)
        await state.queue.finish(held, DONE)
        used[held.job.tenant] += round(seconds)
    assert abs(used["long"] - used["short"]) <= 2.75 * USUAL


async def test_a_weight_buys_as_many_times_the_seconds(state: State, config: Config) -> None:
    await state.control.set_weight("heavy", 3)
    await queue_up(state, "heavy", 40)
    await queue_up(state, "light", 40)
    ran = Counter([await run_next(state, config) for _ in range(20)])
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
    assert Counter([await run_next(state, config) for _ in range(12)]) == {"heavy": 8, "light": 4}


async def test_several_workers_take_turns_among_tenants(state: State) -> None:
    await queue_up(state, "a", 10)
    await queue_up(state, "b", 10)
    assert Counter([(await lease(state, f"worker {n}")).job.tenant for n in range(4)]) == {"a": 2, "b": 2}


async def test_who_was_away_has_no_claim_on_what_it_missed(state: State, config: Config) -> None:
    await queue_up(state, "away", 1)
    await run_next(state, config)
    await queue_up(state, "busy", 30)
    for _ in range(10):
        await run_next(state, config)
    await queue_up(state, "away", 30)
    ran = Counter([await run_next(state, config) for _ in range(10)])
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
    left = await state.redis.zscore(keys.leases(MODEL.slug), held.job.id) / 1000 - seconds
    assert abs(left) < config.lifetimes.lease + 60
    assert (await lease(state, "b")).job != held.job
    assert await state.queue.finish(held, DONE)


async def test_a_lease_from_before_the_clock_went_back_still_lapses(config: Config) -> None:
    keys = Keys(config.redis.prefix)
    async with open_state(config.model_copy(update={"lifetimes": LifetimeConfig(lease=2)})) as state:
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
    await run_next(state, config)  # the first of "much": what a job takes
    places = {job.id: place for job in jobs if (place := await state.queue.place(job.id))}
    running = await lease(state)
    told = await state.queue.place(jobs[-1].id)
    order = []
    for turn in range(12):
        held = await lease(state) if turn else running
        order.append(held.job.id)
        await use(state, config, held, USUAL)
        await state.queue.finish(held, DONE)
    assert told is not None
    assert told.seconds is not None
    assert 0 < told.seconds < 20 * USUAL
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
    assert 0.04 < second - first < 60
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
    assert await state.queue.lease(MODEL, "one") is None
    waiting = asyncio.create_task(state.queue.lease(MODEL, "one"))
    await state.control.resume(MODEL)
    assert await waiting or await state.queue.lease(MODEL, "one")


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
    guest = await state.entrance.enter("", keyless="mine")
    assert guest is not None
    assert (guest.limits.running_jobs, guest.limits.wall_seconds) == (1, 5)
    assert guest.limits.log_bytes == config.limits.log_bytes
    other = await state.entrance.enter("", keyless="other")
    assert other is not None
    assert other.limits == config.limits


async def test_a_job_that_waited_runs_under_the_limits_that_were_set_meanwhile(state: State) -> None:
    await queue_up(state, "mine", 2)
    before = await lease(state)
    await state.control.set_limits("mine", LimitChanges(wall_seconds=7200, memory_bytes=8 << 30, running_jobs=9))
    after = await lease(state)
    assert (after.job.limits.wall_seconds, after.job.limits.memory_bytes) == (7200, 8 << 30)
    assert after.job.limits.log_bytes == before.job.limits.log_bytes
    await state.control.set_limits("mine", LimitChanges())
    await state.queue.give_back(after, "again")
    assert (await lease(state)).job.limits == before.job.limits


@pytest.mark.parametrize("weight", [0, -1, 0.0009, float("nan"), float("inf"), 1001])
async def test_an_impossible_weight_is_refused(state: State, weight: float) -> None:
    with pytest.raises(InvalidRequest, match=r"expected 0\.001 to 1000"):
        await state.control.set_weight("mine", weight)


async def test_one_idempotency_key_is_one_job(state: State) -> None:
    async def send(payload: str, session: str = "", tenant: str = "local") -> tuple[str, str, bool]:
        job = make_job(session, tenant=tenant)
        sent = await state.queue.submit(
            job, waiting_jobs=9, running_jobs=9, kept_jobs=9, model_ready=True, idempotency=("key", payload)
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
        await run_next(state, config)
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
            redis=RedisConfig(url=redis_url, prefix=prefix),
            store=StoreConfig(url=str(folder)),
            lifetimes=LifetimeConfig(lease=600),
            state_dir=folder,
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


async def test_a_tenant_at_its_share_saves_up_no_claim(state: State, config: Config) -> None:
    other = make_job(tenant="held up", model=OTHER)
    await submit(state, other, running_jobs=1)
    elsewhere = await lease(state, "elsewhere", OTHER)
    for _ in range(30):
        await submit(state, make_job(tenant="held up"), running_jobs=1)
    await queue_up(state, "busy", 60)
    for _ in range(20):
        assert await run_next(state, config) == "busy"
    await state.queue.finish(elsewhere, DONE)
    ran = Counter([await run_next(state, config) for _ in range(10)])
    assert max(ran.values()) <= 6, ran


async def test_a_debt_is_seconds_whatever_the_weight_was(state: State, config: Config) -> None:
    await state.models.publish(ModelCard(key=MODEL, commit="0" * 40, dtype="float32", config={}))
    await state.control.set_weight("light", 0.01)
    await queue_up(state, "light", 30)
    await run_next(state, config)
    await state.control.set_weight("light", 1)
    await queue_up(state, "other", 30)
    ran = Counter([await run_next(state, config) for _ in range(10)])
    assert ran["light"] >= 4, ran


async def test_a_share_that_an_operator_takes_back_is_the_former_one(state: State) -> None:
    await queue_up(state, "mine", 4)
    await state.control.set_limits("mine", LimitChanges(running_jobs=1))
    await lease(state)
    await submit(state, make_job(tenant="mine"), running_jobs=50)  # by a gateway that has not heard of it yet
    assert await state.queue.lease(MODEL, "two") is None
    await state.control.set_limits("mine", LimitChanges())
    assert await state.queue.lease(MODEL, "two") is not None


async def test_a_lapsed_job_is_found_behind_many_that_were_given_back(state: State, config: Config) -> None:
    for _ in range(120):
        await submit(state, make_job(tenant="throttled"), waiting_jobs=200, running_jobs=200)
    taken = [await lease(state, "leaving") for _ in range(120)]
    await queue_up(state, "other", 1)
    lapsed = await lease(state, "dead")
    await state.control.set_limits("throttled", LimitChanges(running_jobs=1))
    for one in taken:
        await state.queue.give_back(one, "restart")
    await lease(state, "one of them")
    await lapse(state, config, lapsed)
    assert (await lease(state, "finds it")).job == lapsed.job


async def test_a_drained_worker_takes_no_others_wake_up(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_POLL_SECONDS", 60)  # not found by looking
    await state.control.drain("drained")
    resting = asyncio.create_task(state.queue.lease(MODEL, "drained"))
    awake = asyncio.create_task(state.queue.lease(MODEL, "awake"))
    await asyncio.sleep(0.2)
    await queue_up(state, "mine", 1)
    assert await asyncio.wait_for(awake, 30) is not None
    assert not resting.done()
    resting.cancel()


async def test_a_call_that_is_repeated_after_its_lease_lapsed_gets_nothing_of_the_next_holder(
    state: State, config: Config
) -> None:
    await queue_up(state, "mine", 1)
    args = (MODEL.slug, "late", "token", 2000, 60)
    first = await state.queue._run("pick", *args)
    again = await state.queue._run("pick", *args)
    assert first == again
    keys = Keys(config.redis.prefix)
    (job_id,) = await state.redis.zrange(keys.leases(MODEL.slug), 0, -1)
    await state.redis.zadd(keys.leases(MODEL.slug), {job_id: 1})
    assert (await lease(state, "next")).fence == 2
    assert await state.queue._run("pick", *args) is None


async def test_ended_jobs_over_what_is_kept_are_forgotten_the_oldest_first(state: State) -> None:
    jobs = [make_job() for _ in range(6)]
    for job in jobs[:4]:
        await submit(state, job, kept_jobs=3)
        await asyncio.sleep(0.002)
        await state.queue.finish(await lease(state), DONE)
    for job in jobs[4:]:
        await submit(state, job, kept_jobs=3)
    kept = {one.id for one in (await state.jobs.list("local")).jobs}
    assert kept == {job.id for job in jobs[3:]}
    assert {one.id for one in (await state.jobs.list(None)).jobs} == kept
    with pytest.raises(UnknownJob):
        await state.events.last(jobs[0].id, "local")


async def test_jobs_that_wait_do_not_keep_those_that_have_ended(state: State) -> None:
    waiting, others = [make_job() for _ in range(25)], [make_job(model=OTHER) for _ in range(5)]
    for job in waiting:
        await submit(state, job, kept_jobs=27)
    for job in others:
        await submit(state, job, kept_jobs=27)
        await state.queue.finish(await lease(state, model=job.model), DONE)
    kept = {one.id for one in (await state.jobs.list("local")).jobs}
    assert kept == {job.id for job in (*waiting, *others[-2:])}


async def test_a_paused_model_says_so_in_the_place(state: State, config: Config) -> None:
    await queue_up(state, "mine", 2)
    await run_next(state, config)
    (job,) = (await state.jobs.list("mine", state=JobState.QUEUED)).jobs
    await state.control.pause(MODEL)
    shown = await state.jobs.show(job.id, "mine")
    assert shown.text == "Next in the queue; the model is paused by its operator."


async def why(state: State, tenant: str = "mine") -> str:
    """What the tenant's next job waits for, in the words of its place."""
    (job,) = (await state.jobs.list(tenant, state=JobState.QUEUED, model=MODEL.slug)).jobs
    shown = await state.jobs.show(job.id, tenant)
    assert shown.place is not None
    assert shown.place.reason in shown.text
    return shown.place.reason


async def test_a_tenant_at_its_limit_is_told_so_whichever_models_its_jobs_are_of(state: State, config: Config) -> None:
    await queue_up(state, "mine", 2)
    await run_next(state, config)
    await submit(state, make_job(tenant="mine", model=OTHER))
    held = await lease(state, model=OTHER)
    assert await why(state) == ""
    await state.control.set_limits("mine", LimitChanges(running_jobs=1))
    assert await state.queue.lease(MODEL, "one") is None
    words = "its tenant has 1 running, on all models together, and may have no more (`limits.running_jobs`)"
    assert await why(state) == words
    taken = await state.queue.place(held.job.id)  # it is on its way, and waits for nothing
    assert taken is not None
    assert taken.reason == ""
    await state.queue.finish(held, DONE)
    assert await why(state) == ""


async def test_drained_replicas_are_told_of_once_no_other_takes_jobs(state: State) -> None:
    await queue_up(state, "mine", 1)
    for name in ("one", "two"):
        await state.models.beat(MODEL, Replica(id=name, state=ModelState.READY, pid=1, node="n"))
    await state.control.drain("one")
    assert await why(state) == ""
    await state.control.drain("two")
    assert await why(state) == "an operator has drained the model's replicas, which take no more jobs"


async def test_what_the_model_does_that_no_replica_has_ready_is_told(state: State) -> None:
    await queue_up(state, "mine", 1)
    said = {
        "the model waits to be loaded: It needs 3 GiB": Moment(phase=Phase.QUEUED, text="It needs 3 GiB.", at=1.0),
        "the model is downloaded: 1 of 3 MB are here": Moment(
            phase=Phase.DOWNLOADING, at=1.0, bytes_done=1_000_000, bytes_total=3_000_000
        ),
        "the model's weights are loaded": Moment(phase=Phase.LOADING, text="Its weights are loaded.", at=1.0),
        "": Moment(phase=Phase.READY, at=1.0),
    }
    for words, moment in said.items():
        await state.desired.say(MODEL, moment)
        assert await why(state) == words
    await state.desired.say(MODEL, Moment(phase=Phase.LOADING, at=1.0))
    await state.models.beat(MODEL, Replica(id="one", state=ModelState.READY, pid=1, node="n"))
    assert await why(state) == ""


async def test_a_job_that_runs_long_is_not_taken_to_end_at_once(state: State, config: Config) -> None:
    await queue_up(state, "mine", 3)
    await run_next(state, config, 0.1)
    running = await lease(state)
    await state.redis.hincrby(Keys(config.redis.prefix).job(running.job.id), "taken_ms", -20_000)
    (waiting,) = [one.id for one in (await state.jobs.list("mine")).jobs if not one.attempts]
    place = await state.queue.place(waiting)
    assert place is not None
    assert place.seconds is not None
    assert place.seconds >= 20


async def test_a_job_that_was_cancelled_tells_how_long_it_ran(state: State, config: Config) -> None:
    await queue_up(state, "mine", 1)
    held = await lease(state)
    await use(state, config, held, 1.5)
    await state.queue.cancel(held.job.id, "enough")
    cost = (await state.jobs.show(held.job.id, "mine")).cost
    assert cost is not None
    assert cost.runtime is not None
    assert cost.runtime >= 1.5
    assert f'"runtime": {cost.runtime}' in state.audit.path.read_text()


class Followed:
    """One job under one idempotency key, asked for again and again."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def ask(self, session: str = "") -> tuple[str, bool]:
        job = make_job(session)
        limits = {"waiting_jobs": 9, "running_jobs": 9, "kept_jobs": 9}
        sent = await self._state.queue.submit(job, **limits, model_ready=True, idempotency=("key", "payload"))
        return sent.job_id, sent.replayed

    async def leave(self, job_id: str, session: str) -> bool:
        return await self._state.queue.leave(job_id, session, "The client left.")


async def test_a_client_that_comes_back_on_another_socket_keeps_its_job(state: State) -> None:
    followed = Followed(state)
    former, session = await state.sessions.open("local"), await state.sessions.open("local")
    job_id, _ = await followed.ask(former)
    for _ in range(2):  # the client or the connection to Redis may repeat it
        assert await followed.ask(session) == (job_id, True)
    assert not await followed.leave(job_id, former)
    assert await followed.leave(job_id, session)


async def test_a_client_that_comes_back_too_late_gets_a_new_job(state: State) -> None:
    followed = Followed(state)
    session = await state.sessions.open("local")
    job_id, _ = await followed.ask(session)
    assert await followed.leave(job_id, session)
    new, replayed = await followed.ask(await state.sessions.open("local"))
    assert new != job_id
    assert not replayed


@pytest.mark.parametrize("first", ["", "socket"])
async def test_a_job_that_is_polled_is_not_cancelled_by_a_socket_that_leaves(state: State, first: str) -> None:
    followed = Followed(state)
    sessions = [await state.sessions.open("local") if first else "", await state.sessions.open("local"), ""]
    job_ids = {(await followed.ask(session))[0] for session in sessions}
    (job_id,) = job_ids
    for session in sessions:
        assert not (session and await followed.leave(job_id, session))
