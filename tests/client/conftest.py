"""A gateway for whoever has no wish of its own."""

from collections.abc import Iterator

import gateway_process
import pytest
from gateway_process import Gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with gateway_process.running(folder, redis_url, gateway={"drain_seconds": 0}) as gateway:
        yield gateway
