"""Tasks end when they are told to, even those that have lost a cancellation."""

import asyncio

import pytest

from interlace_state.tasks import cancelled


async def test_a_lost_cancellation_is_made_once_more() -> None:
    async def deaf(times: int) -> None:
        for _ in range(times):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
        await asyncio.sleep(60)

    tasks = [asyncio.create_task(deaf(times)) for times in (0, 1, 2)]
    await asyncio.sleep(0)
    async with asyncio.timeout(50):
        await cancelled(*tasks)
    assert all(task.cancelled() for task in tasks)


async def test_what_a_task_raised_is_not_raised_again(caplog: pytest.LogCaptureFixture) -> None:
    async def failing() -> None:
        raise ValueError

    task = asyncio.create_task(failing())
    await asyncio.sleep(0)
    await cancelled(task)
    del task
    assert caplog.records == []


async def test_nothing_to_end() -> None:
    await cancelled()
