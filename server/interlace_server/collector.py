"""Removes results, payloads and entries of the index and of queues of jobs whose lifetime is over, every few minutes.

It also makes the index of artifacts again where Redis has lost it.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from interlace_state import log
from interlace_state.settings.services import LifetimeConfig
from interlace_state.store import State

_LONGEST_PERIOD = 300.0  # seconds


@asynccontextmanager
async def collecting(state: State, lifetimes: LifetimeConfig) -> AsyncIterator[None]:
    """Collect while the block runs."""
    task = asyncio.create_task(_collect_forever(state, lifetimes), name="collector")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _collect_forever(state: State, lifetimes: LifetimeConfig) -> None:
    while True:
        try:
            await state.lake.make_sure_of_index()
            files = await state.results.collect() + await state.values.collect() + await state.checkpoints.collect()
            jobs = await state.jobs.prune(time.time() - lifetimes.result)
            queued = await _sweep(state, time.time() - lifetimes.waiting)
            if files or jobs or queued:
                log.info("collected", files=files, jobs=jobs, queued=queued)
        except Exception as error:  # noqa: BLE001  the task's edge: a store that fails now may answer next time
            log.failure("collect_failed", error)
        await asyncio.sleep(min(_LONGEST_PERIOD, lifetimes.result))


async def _sweep(state: State, older_than: float) -> int:
    models = {one.card.key for one in await state.models.all()} | {one.key for one in await state.desired.all()}
    return sum([await state.queue.sweep(key, older_than) for key in models])
