"""From the configuration's models to what a runtime can start: resolve the weights, publish the catalogue."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

from interlace.protocol.model import ModelKey
from interlace_state.config import Config, ModelConfig
from interlace_state.models import ModelCard
from interlace_state.store import State
from interlace_workers import sources
from interlace_workers.executors.base import LoadFailed
from interlace_workers.executors.fork import ForkExecutor
from interlace_workers.order import Load
from interlace_workers.replica import Replica, give_up


@dataclass(frozen=True)
class Placement:
    """One model that is to be hosted, its weights on this machine."""

    #: Position in `Config.models`.
    index: int
    model: ModelConfig
    key: ModelKey


def key_of(model: ModelConfig, repo_id: str) -> ModelKey:
    return ModelKey(
        repo_id=repo_id,
        revision=model.revision,
        task=model.task,
        trust_remote_code=model.trust_remote_code,
    )


async def place(config: Config, state: State, say: Callable[[str], None]) -> list[Placement]:
    """Resolve every model side by side and publish its card; one that cannot be resolved is published as failed."""
    placed = await asyncio.gather(*(_place(config, state, index, say) for index in range(len(config.models))))
    await _withdraw_others(state, {key for key, _ in placed})
    return [placement for _, placement in placed if placement is not None]


async def _withdraw_others(state: State, keys: set[ModelKey]) -> None:
    """Take models of a former configuration out of the catalogue and end the jobs that wait for them."""
    for hosted in await state.models.all():
        if (key := hosted.card.key) not in keys:
            await state.models.withdraw(key)
            await state.queue.fail_all(key, f"{key} is no longer hosted on this server.")


async def _place(
    config: Config, state: State, index: int, say: Callable[[str], None]
) -> tuple[ModelKey, Placement | None]:
    model = config.models[index]
    try:
        source = await asyncio.to_thread(sources.resolve, model, config.cache_dir, say)
    except sources.SourceError as error:
        key = key_of(model, sources.name_of(model))
        await state.models.publish(
            ModelCard(key=key, commit="0" * 40, dtype=model.dtype, config={}, failure=str(error))
        )
        say(f"{key}: {error}")
        return key, None
    key = key_of(model, source.repo_id)
    await state.models.forget_replicas(key)
    for name, path in source.hub_files().items():
        await state.models.put_file(key, name, await asyncio.to_thread(path.read_bytes))
    await state.models.publish(sources.card(source, key, model))
    return key, Placement(index=index, model=model, key=key)


def threads_of(config: Config, model: ModelConfig) -> int:
    """Processor threads for one job: as configured, or the cores shared evenly among all slots."""
    slots = sum(other.replicas * other.slots for other in config.models)
    return model.threads or max(1, (os.cpu_count() or 1) // max(1, slots))


async def build_replica(config: Config, state: State, index: int, key: ModelKey, name: str) -> Replica:
    """A replica of the model at ``index``, not started. Raises LoadFailed if this machine has no weights for it."""
    model = config.models[index]
    try:
        source = await asyncio.to_thread(sources.resolve, model, config.cache_dir, lambda _: None)
    except sources.SourceError as error:
        await give_up(state, key, str(error))
        raise LoadFailed(str(error)) from None
    load = Load(
        path=str(source.path),
        task=model.task,
        dtype=model.dtype,
        trust_remote_code=model.trust_remote_code,
        threads=threads_of(config, model),
    )
    return Replica(config, state, key, ForkExecutor(load), name=name, slots=model.slots)
