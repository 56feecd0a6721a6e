"""An executor for whoever needs one of a tiny model and nothing else of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from interlace_workers.executors.fork import ForkExecutor
from interlace_workers.order import Load


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def executor(tiny_models: Path) -> AsyncIterator[ForkExecutor]:
    executor = ForkExecutor(Load(str(tiny_models), "text-generation", "float32", False, threads=1))
    await executor.start()
    yield executor
    await executor.stop()
