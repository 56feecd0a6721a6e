"""A task that waits for Redis can be cancelled at any moment, and hears of a Redis that does not answer."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import pytest
import redis_server
from meeting import MODEL, lease, submitted
from redis.exceptions import TimeoutError as RedisTimeoutError

from interlace_state import store
from interlace_state.config import Config
from interlace_state.config_file import ConfigError
from interlace_state.settings.services import RedisConfig, StoreConfig
from interlace_state.store import State, open_state

_STEPS = 12  # of the event loop, more than a command takes

Operation = Callable[[State], Awaitable[object]]
OPERATIONS: dict[str, Operation] = {
    "command": lambda state: state.redis.get("nothing"),
    "blocking": lambda state: state.redis.xread({"nothing": "0"}, block=1_000),
    "pipeline": lambda state: state.sessions.open("local"),
    "script": lambda state: state.queue.fail_waiting(MODEL, "no weights"),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_no_cancellation_is_lost(state: State, operation: Operation) -> None:
    async def run() -> None:
        await operation(state)

    cancelled = 0
    for steps in [*range(_STEPS)] * 5:
        task = asyncio.create_task(run())
        for _ in range(steps):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
            cancelled += 1
    assert cancelled > _STEPS
    assert await state.redis.ping()


async def test_a_redis_that_hangs_is_found_out(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("hung")
    with redis_server.running(folder) as url:
        config = Config(redis=RedisConfig(url=url), store=StoreConfig(url=str(folder / "store")))
        async with open_state(config) as state:
            await submitted(state)
            held = await lease(state)
            pid = (await state.redis.info("server"))["process_id"]
            os.kill(pid, signal.SIGSTOP)
            try:
                monkeypatch.setattr(store, "ANSWER_SECONDS", 1.0)
                for asked in (state.redis.ping(), state.sessions.open("local"), state.queue.renew(held)):
                    with pytest.raises(RedisTimeoutError, match=r"not answered for 1 seconds"):
                        await asyncio.wait_for(asked, 60)
            finally:
                monkeypatch.undo()
                os.kill(pid, signal.SIGCONT)
            assert await state.queue.renew(held)


@pytest.mark.parametrize(("url", "says"), [("oss://bucket/folder", "Install ossfs"), ("nope://x", "not known: nope")])
async def test_a_store_that_nothing_here_can_open(config: Config, url: str, says: str) -> None:
    unusable = config.model_copy(update={"store": StoreConfig(url=url)})
    with pytest.raises(ConfigError, match=rf"`store.url` is '{url}'.*{says}"):
        async with open_state(unusable):
            pass


async def test_no_redis_is_a_mistake_of_the_configuration(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"redis\.url"):
        async with open_state(config.model_copy(update={"redis": RedisConfig()})):
            pass
