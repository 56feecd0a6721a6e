"""Jobs that a replica takes along: whenever it is stopped, they wait for another, and count as lost for nobody."""

import asyncio
import secrets
from pathlib import Path

import pytest
from meeting import MODEL, lease, submitted

from interlace_state.config import Config
from interlace_state.settings.services import BatchingConfig, LifetimeConfig, RedisConfig, StoreConfig, TelemetryConfig
from interlace_state.store import open_state
from interlace_state.tracing import Tracing
from interlace_workers.executors.fork import ForkExecutor
from interlace_workers.order import Load
from interlace_workers.replicas.replica import Replica
from interlace_workers.replicas.telemetry import Telemetry


@pytest.mark.parametrize("turns", range(1, 12))
async def test_all_leases_go_back_where_it_is_stopped_while_it_asks(redis_url: str, tmp_path: Path, turns: int) -> None:
    config = Config(
        redis=RedisConfig(url=redis_url, prefix=f"test:{secrets.token_hex(4)}:"),
        store=StoreConfig(url=str(tmp_path / "store")),
        lifetimes=LifetimeConfig(lease=600),
        batching=BatchingConfig(window=0.1),
        state_dir=tmp_path,
    )
    async with open_state(config) as state:
        jobs = [await submitted(state) for _ in range(4)]
        executor = ForkExecutor(Load("none", "text-generation", "float32", False, threads=1))
        telemetry = Telemetry(state.metrics, Tracing(TelemetryConfig(), "tests"), MODEL, "one", 1)
        replica = Replica(config, state, MODEL, executor, telemetry, name="one", slots=1)
        asking = asyncio.create_task(replica._company(await lease(state)))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await state.queue.running(MODEL) == 0
        assert await state.queue.length(MODEL) == len(jobs)
        assert (await lease(state, "another")).attempt == 1
