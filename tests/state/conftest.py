"""A real Redis for each session of tests, and a clean meeting place in it for each test."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from interlace_state.config import Config
from interlace_state.settings.services import LifetimeConfig, RedisConfig, StoreConfig
from interlace_state.store import State, open_state


@pytest.fixture
def config(redis_url: str, tmp_path: Path) -> Config:
    return Config(
        redis=RedisConfig(url=redis_url, prefix=f"test:{secrets.token_hex(4)}:"),
        store=StoreConfig(url=str(tmp_path / "store")),
        lifetimes=LifetimeConfig(lease=600),  # a slow machine loses none; who waits for its end says so
        state_dir=tmp_path,
    )


@pytest.fixture
async def state(config: Config) -> AsyncIterator[State]:
    async with open_state(config) as opened:
        yield opened
