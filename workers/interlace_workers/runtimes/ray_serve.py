"""Replicas as Ray Serve applications, one for each model: Ray places them, watches them and starts them again."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve

from interlace.protocol.model import ModelKey
from interlace_state import log
from interlace_state.config import Config
from interlace_state.store import State, open_state
from interlace_state.tracing import Tracing
from interlace_workers.executors.base import LoadFailed
from interlace_workers.placement import Placement, build_replica
from interlace_workers.runtimes import ray_scaling

_HEALTH_SECONDS = 5.0
_HARDLY_A_CORE = 0.001
#: Unix socket paths may have 107 characters; Ray's own part of one takes about 70.
_LONGEST_TEMP_DIR = 20


class ReplicaDeployment:
    """A replica inside a Ray Serve replica actor. Ray carries no payload: it pulls its jobs from Redis."""

    async def __init__(self, config: str, index: int, key: str, ahead: str) -> None:  # type: ignore[misc]
        self._config = Config.model_validate_json(config)
        self._index = index
        self._key = ModelKey.parse(key)
        self._ahead = ahead
        self._stop = asyncio.Event()
        self._serving = asyncio.get_running_loop().create_task(self._serve(), name="replica")

    async def _serve(self) -> None:
        name = serve.get_replica_context().replica_id.unique_id
        log.configure(model=str(self._key), replica=name)
        async with AsyncExitStack() as stack:
            state = await stack.enter_async_context(open_state(self._config))
            tracing = await stack.enter_async_context(Tracing(self._config.telemetry, "interlace-worker", name))
            replica = await build_replica(self._config, state, tracing, self._index, self._key, name, self._ahead)
            await replica.serve(self._stop)

    def check_health(self) -> None:
        """Ray Serve starts a new replica when this raises. A model that cannot be loaded is not tried again."""
        if self._serving.done() and not self._stop.is_set():
            error = self._serving.exception()
            if not isinstance(error, LoadFailed):
                raise error or RuntimeError("the replica has ended")

    async def __del__(self) -> None:
        self._stop.set()
        await asyncio.wait({self._serving})


async def host(config: Config, file: Path, state: State, placements: Sequence[Placement], stop: asyncio.Event) -> None:
    """Run every model's application until ``stop``. Ray carries the configuration, not ``file``."""
    with _temp_dir(config) as folder:
        scaler = await asyncio.to_thread(_start_blocking, config, placements, folder)
        # ray.init has put a handler of its own in place, which ends the process after it has written a stack trace.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            await stop.wait()
        finally:
            del scaler
            await asyncio.to_thread(_stop_blocking, placements)


def _start_blocking(config: Config, placements: Sequence[Placement], folder: str) -> Any:
    """Start Ray, or join it, and have it host the placements; the handle of what scales them, None if nothing does."""
    if config.ray.address is None:
        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            dashboard_host="127.0.0.1",  # of the little that is left of one
            object_store_memory=config.ray.object_store_bytes,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=folder,
            # Ray's default of 15 would put every forward behind whatever else the machine does.
            _system_config={"worker_niceness": 0},
        )
    else:
        ray.init(address=config.ray.address, log_to_driver=False)
    scaled = {one.key.canonical: one.index for one in placements if one.model.autoscale is not None}
    scaler = ray_scaling.start(config, scaled) if scaled else None
    serve.start(proxy_location="Disabled")
    targets = [serve.RunTarget(target=_application(config, placement), **_names(placement)) for placement in placements]
    serve.run_many(targets, wait_for_applications_running=False)
    return scaler


def _stop_blocking(placements: Sequence[Placement]) -> None:
    with ThreadPoolExecutor(max_workers=max(1, len(placements))) as threads:
        list(threads.map(lambda placement: serve.delete(placement.key.slug), placements))
    ray.shutdown()


def _application(config: Config, placement: Placement) -> Any:
    model, key = placement.model, placement.key
    if model.autoscale is None:
        replicas: dict[str, Any] = {"num_replicas": model.replicas}
    else:
        replicas = {"autoscaling_config": ray_scaling.autoscaling(config.redis.prefix, key.slug, model.autoscale)}
    deployment = serve.deployment(
        ReplicaDeployment,
        name="replica",
        **replicas,
        # Replicas bound their own threads; Ray's logical cores would only keep models from starting. But what needs
        # nothing at all it does not spread over its nodes.
        ray_actor_options={"num_cpus": _HARDLY_A_CORE},
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=config.gateway.drain_seconds + 10,
    )
    return deployment.bind(config.model_dump_json(), placement.index, placement.key.canonical, placement.ahead)


def _names(placement: Placement) -> dict[str, Any]:
    return {"name": placement.key.slug, "route_prefix": None}


@contextmanager
def _temp_dir(config: Config) -> Iterator[str]:
    """A folder for a local Ray's sockets and logs, gone afterwards: in ours, if that is short enough for a socket."""
    own = str(config.state_dir)
    with tempfile.TemporaryDirectory(
        prefix="ray-" if len(own) <= _LONGEST_TEMP_DIR else "interlace-ray-",
        dir=own if len(own) <= _LONGEST_TEMP_DIR else None,
        ignore_cleanup_errors=True,
    ) as folder:
        yield folder
