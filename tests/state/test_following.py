"""Many jobs' events over one connection: which jobs they are may change while a read waits."""

import asyncio
from contextlib import aclosing

import pytest
from meeting import lease, submitted

from interlace.protocol.event import Ended, Log, decode
from interlace.protocol.job import JobState
from interlace_state import following as module
from interlace_state.config import Config
from interlace_state.following import Following
from interlace_state.keys import Keys
from interlace_state.store import State


async def read(following: Following) -> list[tuple[str, str, bytes | None]]:
    async with aclosing(following.read()) as news:
        return [one async for one in news]


async def until_it_waits(state: State) -> None:
    while not [one for one in await state.redis.client_list() if one["cmd"] == "xread" and "b" in one["flags"]]:
        await asyncio.sleep(0.01)


async def test_a_read_that_waits_ends_when_it_is_interrupted(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_MS", 0)  # it never ends by itself
    following, jobs = state.events.following(), [await submitted(state) for _ in range(3)]
    following.add(jobs[0].id, "0")
    assert [job_id for job_id, _, _ in await read(following)] == [jobs[0].id]
    for job in jobs[1:]:
        reading = asyncio.create_task(read(following))
        await until_it_waits(state)
        following.interrupt()
        following.interrupt()
        assert await reading == []
        following.add(job.id, "0")
        assert [job_id for job_id, _, _ in await read(following)] == [job.id]
    await following.close()


async def test_an_interruption_before_it_waits_is_not_lost(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_MS", 0)
    following, job = state.events.following(), await submitted(state)
    following.add(job.id, "0")
    await read(following)
    for _ in range(20):
        reading = asyncio.create_task(read(following))
        await asyncio.sleep(0)  # it has been sent, and Redis may not have it yet
        following.interrupt()
        assert await reading == []
    await following.close()


async def test_what_was_not_taken_is_read_again_and_who_left_is_not_told_of(state: State) -> None:
    following, one, other = state.events.following(), await submitted(state), await submitted(state)
    following.add(one.id, "0")
    following.add(other.id, "0")
    async with aclosing(following.read()) as news:
        first = await anext(news)
    whole = await read(following)
    assert whole[0] == first
    assert {job_id for job_id, _, _ in whole} == {one.id, other.id}
    for job_id, _, _ in whole:
        following.leave(job_id)
        following.add(job_id, "0")  # anew, amid what is read
    async with aclosing(following.read()) as news:
        async for job_id, _, data in news:
            assert data is not None
            following.leave(job_id)
    assert len(following) == 0


async def test_each_of_many_jobs_is_read_to_its_end(state: State) -> None:
    following, jobs = state.events.following(), [await submitted(state) for _ in range(20)]
    for job in jobs:
        following.add(job.id, "0")
        held = await lease(state)
        await state.queue.record(held, *(Log(text=f"{number}") for number in range(50)))
        await state.queue.finish(held, Ended(state=JobState.COMPLETED))
    told: dict[str, list[str]] = {job.id: [] for job in jobs}
    while len(following):
        for job_id, _, data in await read(following):
            assert data is not None
            event = decode(data)
            if isinstance(event, Log):
                told[job_id].append(event.text)
            if isinstance(event, Ended):
                following.leave(job_id)
    assert set(map(tuple, told.values())) == {tuple(map(str, range(50)))}


async def test_a_job_whose_events_are_gone_is_told_of_once_also_beside_one_that_is_busy(
    state: State, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_MS", 1)
    following, gone, busy = state.events.following(), await submitted(state), await submitted(state)
    following.add(gone.id, "9999999999999-0")
    following.add(busy.id, "0")
    await state.redis.delete(Keys(config.redis.prefix).events(gone.id))
    told: list[tuple[str, str, bytes | None]] = []
    while gone.id in following:
        await state.redis.xadd(Keys(config.redis.prefix).events(busy.id), {"e": "{}"})
        told += await read(following)
    assert [job_id for job_id, _, data in told if data is None] == [gone.id]
    assert list(following) == [busy.id]
