"""A job is taken by one worker at a time, ends once, and is not lost with its worker."""

import asyncio
import secrets
import time
from pathlib import Path

import pytest
from meeting import MODEL, history, lease, make_job, submit, submitted
from redis.asyncio.connection import AbstractConnection

from interlace.protocol.errors import LimitExceeded, SessionRefused, UnknownJob
from interlace.protocol.event import Ended, Log, StateChanged
from interlace.protocol.job import JobState
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.models import ModelCard, ModelState, Replica
from interlace_state.queue import ModelChanged
from interlace_state.settings.services import LifetimeConfig, RedisConfig, StoreConfig
from interlace_state.store import State, open_state


async def test_jobs_leave_in_the_order_they_came(state: State) -> None:
    jobs = [make_job() for _ in range(3)]
    assert [await submit(state, job) for job in jobs] == [1, 2, 3]
    assert [(await lease(state)).job for _ in jobs] == jobs


async def test_an_idle_queue_gives_nothing_within_about_a_second(state: State) -> None:
    await state.queue.lease(MODEL, "one")
    assert await state.queue.lease(MODEL, "one") is None


async def test_a_waiting_worker_gets_a_new_job_at_once(state: State) -> None:
    await state.queue.lease(MODEL, "one")
    waiting = asyncio.create_task(state.queue.lease(MODEL, "one"))
    await asyncio.sleep(0)
    job = make_job()
    await submit(state, job)
    taken = await waiting or await lease(state)
    assert taken.job == job


async def test_two_workers_never_hold_one_job(state: State) -> None:
    jobs = [make_job() for _ in range(20)]
    for job in jobs:
        await submit(state, job)

    async def drain(worker: str) -> list[str]:
        taken = []
        for _ in range(30):
            if found := await state.queue.lease(MODEL, worker):
                taken.append(found.job.id)
                await state.queue.finish(found, Ended(state=JobState.COMPLETED))
            elif not await state.queue.length(MODEL):
                break
        return taken

    taken = [job_id for part in await asyncio.gather(*map(drain, "abc")) for job_id in part]
    assert sorted(taken) == sorted(job.id for job in jobs)


async def test_a_job_ends_once(state: State) -> None:
    job = make_job()
    await submit(state, job)
    held = await lease(state)
    assert await state.queue.finish(held, Ended(state=JobState.COMPLETED, text="first"))
    assert not await state.queue.finish(held, Ended(state=JobState.ERROR, text="second"))
    events = await history(state, job)
    assert [event.text for event in events if isinstance(event, Ended)] == ["first"]
    assert await state.queue.length(MODEL) == 0


async def test_a_silent_worker_loses_its_job_to_another(config: Config) -> None:
    soon = config.model_copy(update={"lifetimes": LifetimeConfig(lease=2)})
    async with open_state(soon) as state:
        job = make_job()
        await submit(state, job)
        first = await lease(state, "silent")
        deadline = time.monotonic() + 60
        second = None
        while second is None and time.monotonic() < deadline:
            second = await state.queue.lease(MODEL, "other")
    assert second is not None
    assert (second.job, first.attempt, second.attempt) == (job, 1, 2)


async def test_a_renewed_lease_stays(redis_url: str, tmp_path: Path) -> None:
    config = Config(
        redis=RedisConfig(url=redis_url, prefix=f"test:{secrets.token_hex(4)}:"),
        store=StoreConfig(url=str(tmp_path)),
        state_dir=tmp_path,
        lifetimes=LifetimeConfig(lease=60),
    )
    async with open_state(config) as state:
        await submit(state, make_job())
        held = await lease(state, "busy")
        leases = Keys(config.redis.prefix).leases(MODEL.slug)
        for _ in range(3):  # Redis counts the time, so it is told
            await state.redis.zincrby(leases, -40_000, held.job.id)
            assert await state.queue.renew(held)
        await state.redis.zincrby(leases, -40_000, held.job.id)
        assert await state.queue.lease(MODEL, "other") is None
        assert await state.queue.renew(held)
        await state.redis.zincrby(leases, -60_000, held.job.id)
        assert await state.queue.lease(MODEL, "other") is not None


async def test_a_job_that_is_given_back_runs_elsewhere(state: State) -> None:
    job = make_job()
    await submit(state, job)
    await state.queue.give_back(await lease(state, "leaving"), "waits for another")
    again = await lease(state, "other")
    assert (again.job, again.attempt, again.fence) == (job, 1, 3)
    await state.queue.finish(again, Ended(state=JobState.COMPLETED))
    texts = [event.text for event in await history(state, job) if isinstance(event, StateChanged)]
    assert texts[-1] == "waits for another"


async def test_a_full_queue_refuses_and_says_the_limit(state: State) -> None:
    await submit(state, make_job(), waiting_jobs=1)
    with pytest.raises(LimitExceeded, match=r"limit of 1 jobs.*limits\.waiting_jobs"):
        await submit(state, make_job(), waiting_jobs=1)


async def test_a_session_takes_one_job(state: State) -> None:
    session = await state.sessions.open("local")
    job = make_job(session)
    await submit(state, job)
    assert await state.sessions.job_of(session) == job.id
    with pytest.raises(SessionRefused, match="has a job already"):
        await submit(state, make_job(session))


async def test_a_session_that_is_not_open_is_refused_and_nothing_is_queued(state: State) -> None:
    session = await state.sessions.open("local")
    await state.sessions.close(session)
    for wrong in (session, secrets.token_hex(16)):
        with pytest.raises(SessionRefused, match="not open"):
            await submit(state, make_job(wrong))
    assert await state.queue.length(MODEL) == 0


async def test_all_jobs_of_a_model_that_will_not_come_are_failed(state: State) -> None:
    jobs = [make_job() for _ in range(3)]
    for job in jobs:
        await submit(state, job)
    assert await state.queue.fail_all(MODEL, "no weights") == 3
    for job in jobs:
        last = (await history(state, job))[-1]
        assert isinstance(last, Ended)
        assert (last.state, last.text) == (JobState.ERROR, "no weights")


@pytest.mark.parametrize("change", ["card", "replica's state", "replica", "model"])
async def test_a_model_that_is_not_what_it_was_takes_no_job(state: State, change: str) -> None:
    """Who submits may know it from long ago; it is looked at in the same step."""
    card = ModelCard(key=MODEL, commit="0" * 40, dtype="float32", config={})
    replica = Replica(id="r0", state=ModelState.READY, pid=1, node="here")
    await state.models.publish(card)
    await state.models.beat(MODEL, replica)
    assert state.models.recent(MODEL) is None
    await state.models.find(MODEL)
    limits = {"waiting_jobs": 9, "running_jobs": 9, "kept_jobs": 9}
    recent = state.models.recent(MODEL)
    assert recent is not None
    await state.queue.submit(make_job(), **limits, model_ready=True, recent=recent)
    await state.models.beat(MODEL, replica.model_copy(update={"running": 1}))
    await state.queue.submit(make_job(), **limits, model_ready=True, recent=recent)
    if change == "card":
        await state.models.publish(card.model_copy(update={"trusted": ("others",)}))
    elif change == "model":
        await state.models.withdraw(MODEL)
    elif change == "replica":
        await state.models.leave(MODEL, "r0")
    else:
        await state.models.beat(MODEL, replica.model_copy(update={"state": ModelState.DEPLOYING}))
    with pytest.raises(ModelChanged):
        await state.queue.submit(make_job(), **limits, model_ready=True, recent=recent)
    assert await state.queue.length(MODEL) == 2


async def test_events_are_replayed_and_then_live(state: State) -> None:
    job = make_job()
    await submit(state, job)
    following = asyncio.create_task(history(state, job))
    held = await lease(state)
    assert await state.queue.record(held, StateChanged(state=JobState.RUNNING), Log(text="one"), Log(text="two"))
    await state.queue.finish(held, Ended(state=JobState.COMPLETED))
    live = await asyncio.wait_for(following, 60)
    assert live == await history(state, job)
    assert [event.text for event in live if isinstance(event, Log)] == ["one", "two"]
    assert isinstance(await state.events.last(job.id, job.tenant), Ended)


async def test_a_log_is_not_the_last_event_of_a_poll(state: State) -> None:
    job = make_job()
    await submit(state, job)
    assert await state.queue.record(await lease(state), StateChanged(state=JobState.RUNNING), Log(text="one"))
    last = await state.events.last(job.id, job.tenant)
    assert isinstance(last, StateChanged)
    assert last.state is JobState.RUNNING


async def test_an_unknown_job_has_no_events(state: State) -> None:
    with pytest.raises(UnknownJob):
        await state.events.last(secrets.token_hex(16), "local")


async def test_workers_hear_of_a_cancellation_at_once(state: State, config: Config) -> None:
    job = make_job()
    await submit(state, job)
    heard = asyncio.create_task(anext(state.queue.cancelled()))
    channel = Keys(config.redis.prefix).cancelled
    while not (await state.redis.pubsub_numsub(channel))[0][1]:
        await asyncio.sleep(0.01)
    await asyncio.sleep(2.5)  # longer than one look at the channel
    assert await state.queue.cancel(job.id, "enough")
    assert await asyncio.wait_for(heard, 30) == (job.id, False)
    assert await state.queue.is_over(job.id)


@pytest.mark.parametrize("forgets", [False, True])
async def test_a_worker_that_waits_gets_a_job_without_asking_again(
    state: State, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    """Redis is told ahead to pick once a job comes; also where it has forgotten the script meanwhile."""
    pick = state.queue._scripts["pick"].sha.encode()
    sent: list[bytes] = []
    waits = asyncio.Event()
    send = AbstractConnection.send_packed_command

    async def noted(self: AbstractConnection, command: list[bytes], *args: object, **options: object) -> None:
        sent.append(b"".join(command))
        await send(self, command, *args, **options)
        if b"BLPOP" in sent[-1]:
            waits.set()

    monkeypatch.setattr(AbstractConnection, "send_packed_command", noted)
    for _ in range(60):  # a machine that is slow lets a second pass before the job comes
        sent.clear()
        waits.clear()
        leasing = asyncio.create_task(state.queue.lease(MODEL, "one"))
        await waits.wait()
        if forgets:
            await state.redis.script_flush()
        job = await submitted(state)
        held = await leasing
        if held is not None:
            assert held.job.id == job.id
            picks = [b"BLPOP" in one for one in sent if pick in one]
            assert picks[:2] == [False, True]
            assert forgets or len(picks) == 2
            return
        await lease(state)
    raise AssertionError("no job came in time")
