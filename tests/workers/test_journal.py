"""The journal of a lease: its events in order, and its word on whose the job is."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from meeting import lapse, lease, make_job, submit

from interlace.protocol.event import Log
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.settings.services import LifetimeConfig, RedisConfig, StoreConfig
from interlace_state.store import State, open_state
from interlace_workers.replicas import journal as journal_
from interlace_workers.replicas.attempt import Attempt
from interlace_workers.replicas.journal import Journal, LeaseLost


@pytest.fixture
def config(redis_url: str, tmp_path: Path) -> Config:
    return Config(
        redis=RedisConfig(url=redis_url, prefix=f"test:{secrets.token_hex(4)}:"),
        store=StoreConfig(url=str(tmp_path / "store")),
        lifetimes=LifetimeConfig(lease=60),
        state_dir=tmp_path,
    )


@pytest.fixture
async def state(config: Config) -> AsyncIterator[State]:
    async with open_state(config) as opened:
        yield opened


async def aclosed_after(count: int, events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The first few."""
    for _ in range(count):
        yield await anext(events)


async def once(ask):  # type: ignore[no-untyped-def]
    return await ask()


async def test_events_are_written_in_their_order(state: State, config: Config) -> None:
    await submit(state, make_job())
    held = await lease(state)
    async with Journal(state.queue, held, once) as journal:
        for number in range(600):  # more than may wait
            await journal.note(Log(text=str(number)))
        await journal.written()
    entries = await state.redis.xrange(Keys(config.redis.prefix).events(held.job.id))
    texts = [fields[b"e"].decode() for _, fields in entries]
    assert [f'"text":"{number}"' in text for number, text in enumerate(texts[1:])] == [True] * 600


async def test_an_event_that_may_wait_is_written_with_the_next(
    state: State, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_, "_MOMENT", 60.0)
    await submit(state, make_job())
    held = await lease(state)
    asked = 0

    async def counting(ask):  # type: ignore[no-untyped-def]
        nonlocal asked
        asked += 1
        return await ask()

    async with Journal(state.queue, held, counting) as journal:
        journal.note_soon(Log(text="first"))
        await state.redis.ping()
        await journal.note(Log(text="second"))
        await journal.written()
    _, first, second = await state.redis.xrange(Keys(config.redis.prefix).events(held.job.id))
    assert (b'"text":"first"' in first[1][b"e"], b'"text":"second"' in second[1][b"e"], asked) == (True, True, 1)


@pytest.mark.parametrize("is_waited_for", [True, False])
async def test_an_event_that_no_other_follows_is_written_all_the_same(state: State, is_waited_for: bool) -> None:
    """At the end, or in a moment."""
    await submit(state, make_job())
    held = await lease(state)
    async with Journal(state.queue, held, once) as journal, asyncio.timeout(60):
        journal.note_soon(Log(text="alone"))
        if is_waited_for:
            await journal.written()
            assert await state.redis.xlen(state.events._keys.events(held.job.id)) == 2
        told = [event async for _, event in aclosed_after(2, state.events.follow(held.job.id))]
    assert told[1] == Log(text="alone")


async def test_an_event_that_may_wait_is_written_after_others_too(state: State) -> None:
    await submit(state, make_job())
    held = await lease(state)
    async with Journal(state.queue, held, once) as journal:
        await journal.note(Log(text="first"))
        await journal.written()
        journal.note_soon(Log(text="alone"))
        await journal.written()
        assert await state.redis.xlen(state.events._keys.events(held.job.id)) == 3


async def test_what_could_not_be_written_is_told_whoever_asks_next(state: State) -> None:
    await submit(state, make_job())
    held = replace(await lease(state), fence=0)
    async with Journal(state.queue, held, once) as journal:
        await journal.note(Log(text="lost"))
        with pytest.raises(LeaseLost):
            await journal.written()
        journal.note_soon(Log(text="after it"))
        with pytest.raises(LeaseLost):
            await journal.written()


async def test_a_job_that_is_anothers_is_not_confirmed(state: State, config: Config) -> None:
    await submit(state, make_job())
    held = await lease(state)
    async with Journal(state.queue, held, once) as journal:
        await journal.confirm()
        await lapse(state, config, held)
        assert (await lease(state)).fence > held.fence
        with pytest.raises(LeaseLost):
            await journal.confirm()


async def test_a_trace_that_was_leased_a_moment_ago_is_not_asked_for_again(state: State, config: Config) -> None:
    """It cannot have lapsed; one that was leased longer ago may be another's, and must not write over its result."""
    await submit(state, make_job())
    held = await lease(state)
    await lapse(state, config, held)
    assert (await lease(state)).fence > held.fence

    def attempt(since: float) -> Attempt:
        nothing: Any = None  # a part that is not asked
        return Attempt(state, nothing, replace(held, since=since), once, nothing, nothing)

    await attempt(held.since)._make_sure_that_it_is_ours()
    with pytest.raises(LeaseLost):
        await attempt(held.since - state.queue.lease_seconds)._make_sure_that_it_is_ours()
