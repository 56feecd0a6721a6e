"""Ending asyncio tasks that talk to Redis."""

import asyncio

_PATIENCE = 0.5  # seconds until a task that goes on is cancelled once more


async def cancelled(*tasks: "asyncio.Task[object]") -> None:
    """Cancel until all have ended: `asyncio.wait_for` of Python 3.11, in redis-py, can lose a cancellation."""
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_PATIENCE)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would log it as never retrieved
