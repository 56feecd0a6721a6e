"""Removes results and payloads whose lifetime is over, every few minutes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from interlace_server import log
from interlace_state.results import Results

_PERIOD = 300.0  # seconds


@asynccontextmanager
async def collecting(results: Results) -> AsyncIterator[None]:
    """Collect while the block runs."""
    task = asyncio.create_task(_collect_forever(results), name="collector")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _collect_forever(results: Results) -> None:
    while True:
        try:
            removed = await results.collect()
            if removed:
                log.info("collected", files=removed)
        except Exception as error:  # noqa: BLE001  the task's edge: a store that fails now may answer next time
            log.failure("collect_failed", error)
        await asyncio.sleep(_PERIOD)
