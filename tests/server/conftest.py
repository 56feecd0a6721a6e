"""One real Redis and one real gateway for most tests; those that break or stop one start their own."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import gateway_process
import pytest
from gateway_process import KEY, Gateway, Worker

from interlace_state.keys import Keys
from interlace_state.store import State, open_state

GatewayFactory = Callable[..., AbstractContextManager[Gateway]]


@pytest.fixture
def start_gateway(tmp_path: Path, redis_url: str) -> GatewayFactory:
    """Starts a gateway of the test's own; keywords are sections of the configuration."""
    return partial(gateway_process.running, tmp_path, redis_url)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Gateway]:
    """The gateway of all tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("gateway")
    limits = {"payload_bytes": 24 << 20, "unpacked_bytes": 32 << 20, "requests_per_minute": 1_000_000}
    sections = {"gateway": {"drain_seconds": 1}, "limits": limits}
    subscribe = "interlace_server.routes.subscribe"
    # A job that waits is not told again where it stands, however slow the test is; `test_places.py` has its own.
    hurried = {f"{subscribe}._LINGER": 1.0, f"{subscribe}._PLACE_PERIOD": 3600.0}
    with gateway_process.running(folder, redis_url, hurried, **sections) as gateway:
        yield gateway


@pytest.fixture
async def state(gateway: Gateway) -> AsyncIterator[State]:
    """The gateway's state; `lab/tiny` is hosted and ready, and nothing waits for it."""
    async with open_state(gateway.config) as state:
        keys = Keys(gateway.config.redis.prefix)
        await gateway_process.publish(state, gateway.config)
        yield state
        await state.queue.fail_all(KEY, "the test is over")
        await state.redis.delete(keys.models, keys.environment, keys.desired, keys.moments, keys.life)


@pytest.fixture
def worker(state: State) -> Worker:
    return Worker(state)
