"""redis-py repeats a command whose answer was lost; nothing happens twice, and what comes late is not heard."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from meeting import MODEL, ends, history, lease, make_job, submitted

from interlace.protocol.event import Ended, Log
from interlace.protocol.job import JobState
from interlace_state.config import Config
from interlace_state.settings.services import LifetimeConfig, RedisConfig
from interlace_state.store import State, open_state


class Line:
    """A bad line to the real Redis."""

    def __init__(self, url: str) -> None:
        self._redis = url.removeprefix("unix://")
        self._scripts = 0
        #: The answer of the next script is lost, and the connection with it.
        self.loses_answer = False
        #: Scripts wait here on their way to Redis.
        self.open = asyncio.Event()
        self.open.set()
        self.held = asyncio.Event()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, to its end."""
        answers, commands = await asyncio.open_unix_connection(self._redis)
        back = asyncio.create_task(self._answer(answers, writer))
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if b"EVALSHA" in data:
                    self.held.set()
                    await self.open.wait()
                commands.write(data)
        commands.close()
        await back

    async def _answer(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await answers.read(1 << 16):
                if self.loses_answer:
                    self.loses_answer = False
                    break
                writer.write(data)
        writer.close()


@pytest.fixture
async def line(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Line, Path]]:
    line, path = Line(redis_url), tmp_path_factory.mktemp("line") / "redis.sock"
    async with await asyncio.start_unix_server(line.connect, path):
        yield line, path


@pytest.fixture
async def far(config: Config, line: tuple[Line, Path]) -> AsyncIterator[State]:
    """A worker at the other end of the line, which knows its scripts already."""
    redis = RedisConfig(url=f"unix://{line[1]}", prefix=config.redis.prefix)
    lifetimes = LifetimeConfig(lease=60)
    async with open_state(config.model_copy(update={"redis": redis, "lifetimes": lifetimes})) as opened:
        await submitted(opened)
        held = await lease(opened, "far")
        await opened.queue.record(held)
        await opened.queue.give_back(held, "scripts are loaded")
        await opened.queue.finish(await lease(opened, "far"), Ended(state=JobState.COMPLETED))
        yield opened


async def test_events_are_recorded_once(state: State, far: State, line: tuple[Line, Path]) -> None:
    job = await submitted(state)
    held = await lease(far, "far")
    line[0].loses_answer = True
    assert await far.queue.record(held, Log(text="one"), Log(text="two"))
    assert not line[0].loses_answer
    await far.queue.finish(held, Ended(state=JobState.COMPLETED))
    assert [event.text for event in await history(state, job) if isinstance(event, Log)] == ["one", "two"]


async def test_a_job_ends_once_and_its_worker_hears_that_it_ended_it(
    state: State, far: State, line: tuple[Line, Path], config: Config
) -> None:
    job = await submitted(state)
    held = await lease(far, "far")
    line[0].loses_answer = True
    assert await far.queue.finish(held, Ended(state=JobState.COMPLETED, text="once"))
    assert not line[0].loses_answer
    assert not await far.queue.finish(held, Ended(state=JobState.ERROR, text="other"))
    assert await ends(state, config, job) == ["once"]


async def test_a_job_is_given_back_once(state: State, far: State, line: tuple[Line, Path]) -> None:
    await submitted(state)
    held = await lease(far, "far")
    line[0].loses_answer = True
    await far.queue.give_back(held, "restart")
    assert not line[0].loses_answer
    assert await state.queue.length(MODEL) == 1
    assert (await lease(state)).attempt == 1


async def test_a_job_is_taken_once(state: State, far: State, line: tuple[Line, Path]) -> None:
    await submitted(state)
    line[0].open.clear()
    line[0].held.clear()
    taking = asyncio.create_task(lease(far, "far"))
    await asyncio.wait_for(line[0].held.wait(), 60)
    line[0].loses_answer = True
    line[0].open.set()
    assert (await taking).attempt == 1
    assert not line[0].loses_answer


async def test_a_client_that_leaves_is_counted_once(
    state: State, far: State, line: tuple[Line, Path], config: Config
) -> None:
    """Its job goes on for another that follows it."""
    await far.queue.leave("0" * 32, "nobody", "the script is loaded")
    limits = {"waiting_jobs": 9, "running_jobs": 9, "kept_jobs": 9}
    sessions = [await state.sessions.open("local") for _ in range(2)]
    jobs = [make_job(session) for session in sessions]
    for job in jobs:
        await state.queue.submit(job, **limits, model_ready=True, idempotency=("key", "payload"))
    line[0].loses_answer = True
    assert not await far.queue.leave(jobs[0].id, sessions[0], "The client left.")
    assert not line[0].loses_answer
    assert await ends(state, config, jobs[0]) == []
    line[0].loses_answer = True
    assert await far.queue.leave(jobs[0].id, sessions[1], "The client left.")
    assert not line[0].loses_answer
    assert await ends(state, config, jobs[0]) == ["The client left."]


async def test_a_request_that_came_before_is_followed_once(state: State, far: State, line: tuple[Line, Path]) -> None:
    limits = {"waiting_jobs": 9, "running_jobs": 9, "kept_jobs": 9}
    sessions = [await state.sessions.open("local") for _ in range(2)]
    first = make_job(sessions[0])
    await state.queue.submit(first, **limits, model_ready=True, idempotency=("key", "payload"))
    line[0].loses_answer = True
    again = make_job(sessions[1])
    sent = await far.queue.submit(again, **limits, model_ready=True, idempotency=("key", "payload"))
    assert not line[0].loses_answer
    assert (sent.job_id, sent.replayed) == (first.id, True)
    assert not await state.queue.leave(first.id, sessions[0], "left")
    assert await state.queue.leave(first.id, sessions[1], "left")
