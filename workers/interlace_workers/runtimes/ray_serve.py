"""Replicas as Ray Serve applications, one for each model: Ray places them, watches them and starts them again."""

import asyncio
import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve

from interlace.protocol.model import ModelKey
from interlace_state import log
from interlace_state.config import Config
from interlace_state.settings.models import ModelConfig
from interlace_state.store import State, open_state
from interlace_state.tracing import Tracing
from interlace_workers.executors.base import LoadFailed
from interlace_workers.placement.memory import Room, this_machine
from interlace_workers.placement.place import Placement, build_replica
from interlace_workers.runtimes import ray_scaling

_HEALTH_SECONDS = 5.0
_FAILED_SECONDS = 30.0  # until a model that could not be loaded is tried again, where another replica has it
_HARDLY_A_CORE = 0.001
#: Seconds from a replica's GPUs to its first sign of life, at most: for as long they are taken, and it is not there.
_COMING = 20.0
#: Unix socket paths may have 107 characters; Ray's own part of one takes about 70.
_LONGEST_TEMP_DIR = 20


class ReplicaDeployment:
    """A replica inside a Ray Serve replica actor. Ray carries no payload: it pulls its jobs from Redis."""

    async def __init__(self, config: str, model: str, key: str, *places: str) -> None:  # type: ignore[misc]
        self._config = Config.model_validate_json(config)
        self._model = ModelConfig.model_validate_json(model)
        self._key = ModelKey.parse(key)
        #: As of a `Placement`: `ahead`, `share`.
        self._places = places
        self._stop = asyncio.Event()
        self._serving = asyncio.get_running_loop().create_task(self._serve(), name="replica")

    async def _serve(self) -> None:
        name = serve.get_replica_context().replica_id.unique_id
        log.configure(model=str(self._key), replica=name)
        try:
            await self._serve_as(name)
        except LoadFailed:  # if no other replica has the model, the placement loop has given it up, and stops us
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _FAILED_SECONDS)
            raise

    async def _serve_as(self, name: str) -> None:
        async with AsyncExitStack() as stack:
            state = await stack.enter_async_context(open_state(self._config))
            tracing = await stack.enter_async_context(Tracing(self._config.telemetry, "interlace-worker", name))
            replica = await build_replica(self._config, state, tracing, self._model, self._key, name, *self._places)
            await replica.serve(self._stop)

    def check_health(self) -> None:
        """Ray Serve starts a new replica when this raises."""
        if self._serving.done() and not self._stop.is_set():
            raise self._serving.exception() or RuntimeError("the replica has ended")

    async def __del__(self) -> None:
        self._stop.set()
        await asyncio.wait({self._serving})


@asynccontextmanager
async def hosting(config: Config, file: Path, state: State) -> AsyncIterator["RayHost"]:
    """Start Ray, or join it, for as long as the block runs. Ray carries the configuration, not ``file``."""
    with _temp_dir(config) as folder:
        host = RayHost(config, await asyncio.to_thread(_start_blocking, config, folder))
        try:
            yield host
        finally:
            await asyncio.to_thread(host.close)


class RayHost:
    """One Serve application for each model that has run; Serve asks Redis how many replicas it shall have."""

    def __init__(self, config: Config, scaler: Any) -> None:
        self._config = config
        #: Without its handle it ends.
        self._scaler = scaler
        self._placements: dict[str, Placement] = {}
        #: Since when there were no GPUs for a replica more of a model, of those that lack one.
        self._short_since: dict[str, float] = {}

    async def keep(self, wanted: Sequence[tuple[Placement, int]]) -> None:
        fresh = [(one, count) for one, count in wanted if count and one.key.slug not in self._placements]
        if fresh:
            self._placements |= {one.key.slug: one for one, _ in fresh}
            await asyncio.to_thread(self._run, fresh)

    def _run(self, fresh: Sequence[tuple[Placement, int]]) -> None:
        """Run applications, but those that a placer before us has left, whose replicas go on."""
        there = serve.status().applications
        fresh = [one for one in fresh if not _runs(there.get(one[0].key.slug), deployment_name(self._config, one[0]))]
        if not fresh:
            return
        targets = [serve.RunTarget(target=_application(self._config, *one), **_names(one[0])) for one in fresh]
        serve.run_many(targets, wait_for_applications_running=False)

    async def live(self, key: ModelKey) -> int:
        if key.slug not in self._placements:
            return 0
        status = await asyncio.to_thread(serve.status)
        application = status.applications.get(key.slug)
        deployments = [] if application is None else application.deployments.values()
        return sum(sum(deployment.replica_states.values()) for deployment in deployments)

    async def lacking(self, placement: Placement) -> str:
        slug, gpus = placement.key.slug, placement.model.gpus
        if not gpus or slug not in self._placements:
            return ""
        nodes = await asyncio.to_thread(_gpus_of_nodes)
        if gpus <= max((free for _, free in nodes), default=0):
            self._short_since.pop(slug, None)
            return ""
        since = self._short_since.setdefault(slug, time.monotonic())
        there = any(gpus <= total for total, _ in nodes)
        return short_of_gpus(gpus, nodes) if not there or time.monotonic() - since > _COMING else ""

    async def drop(self, key: ModelKey) -> None:
        self._short_since.pop(key.slug, None)
        if self._placements.pop(key.slug, None) is not None:
            await asyncio.to_thread(serve.delete, key.slug)

    async def rooms(self, planned: int, resident: int) -> Sequence[Room]:
        if self._config.ray.address is None:
            return [this_machine(self._config, planned, resident)]
        return await asyncio.to_thread(_rooms_of_cluster, self._config)

    def close(self) -> None:
        """Let running jobs end, and let go of Ray. Blocks."""
        with ThreadPoolExecutor(max_workers=max(1, len(self._placements))) as threads:
            list(threads.map(serve.delete, self._placements))
        self._scaler = None
        ray.shutdown()


def _runs(application: Any, deployment: str) -> bool:
    return application is not None and application.status != "DELETING" and deployment in application.deployments


def _start_blocking(config: Config, folder: str) -> Any:
    """Start Ray, or join it; the handle of the actor that Serve asks how many replicas shall run."""
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
    scaler = ray_scaling.start(config)
    serve.start(proxy_location="Disabled")
    return scaler


def _rooms_of_cluster(config: Config) -> list[Room]:
    """What Ray has reserved of each node's memory, and what it has left."""
    available: Mapping[str, Mapping[str, float]] = ray._private.state.available_resources_per_node()
    rooms: dict[str, Room] = {}
    for node in ray.nodes():
        if node["Alive"] and (total := int(node["Resources"].get("memory", 0))):
            name, free = node["NodeManagerHostname"], int(available.get(node["NodeID"], {}).get("memory", 0))
            if (limit := config.memory.limit_bytes) is not None:
                free, total = free - max(0, total - limit), min(total, limit)
            room = Room(name, total, free - config.memory.spare_bytes)
            rooms[name] = max(room, rooms.get(name, room), key=lambda one: one.free)
    return list(rooms.values())


def _gpus_of_nodes() -> list[tuple[float, float]]:
    """GPUs of each node that has some: in all, and free."""
    available: Mapping[str, Mapping[str, float]] = ray._private.state.available_resources_per_node()
    return [
        (total, available.get(node["NodeID"], {}).get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"] and (total := node["Resources"].get("GPU", 0.0))
    ]


def short_of_gpus(gpus: float, nodes: Sequence[tuple[float, float]]) -> str:
    """The sentence for a replica that has no place, which needs all its GPUs on one node; ``nodes``: in all, free."""
    what = f"A replica waits for {gpus:g} GPU{'' if gpus == 1 else 's'}"
    total, most = sum(one for one, _ in nodes), max((one for one, _ in nodes), default=0)
    if most >= gpus:
        free = max(free for _, free in nodes)
        where = " on one machine" if len(nodes) > 1 else ""
        return f"{what}: the cluster has {total:g}, of which {free:g} {'is' if free == 1 else 'are'} free{where}."
    where = f", at most {most:g} of them on one machine" if len(nodes) > 1 else ""
    return f"{what}: the cluster has {total:g}{where}. It comes once a machine has as many; or deploy it with fewer."


def _application(config: Config, placement: Placement, count: int) -> Any:
    model, key = placement.model, placement.key
    deployment = serve.deployment(
        ReplicaDeployment,
        name=deployment_name(config, placement),
        autoscaling_config=ray_scaling.autoscaling(config.redis.prefix, key.slug, count),
        ray_actor_options=resources(config, placement),
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=config.gateway.drain_seconds + 10,
    )
    places = placement.ahead, placement.share
    return deployment.bind(config.model_dump_json(), model.model_dump_json(), key.canonical, *places)


def deployment_name(config: Config, placement: Placement) -> str:
    """Another one for another configuration: what a placer before us has started is known again by it."""
    facts = (config.model_dump_json(), placement.model.model_dump_json(), placement.key.canonical, placement.generation)
    return f"replica-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"


def resources(config: Config, placement: Placement) -> dict[str, Any]:
    """What Ray reserves for a replica."""
    # Replicas bound their own threads; Ray's logical cores would only keep models from starting. But what needs
    # nothing at all it does not spread over its nodes.
    resources: dict[str, Any] = {"num_cpus": _HARDLY_A_CORE}
    if placement.model.gpus:
        resources["num_gpus"] = placement.model.gpus
    if config.ray.address is not None:
        resources["memory"] = placement.need_bytes
    return resources


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
