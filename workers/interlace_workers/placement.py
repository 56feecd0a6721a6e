"""From the configuration's models to what a runtime can start: resolve the weights, publish the catalogue."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from interlace.protocol.errors import ModelFailed
from interlace.protocol.model import ModelKey
from interlace_state.config import Config, ModelConfig
from interlace_state.config_file import ConfigError
from interlace_state.models import ModelCard
from interlace_state.store import State
from interlace_state.tracing import Tracing
from interlace_workers import headstart, sources
from interlace_workers.executors.base import Executor, LoadFailed
from interlace_workers.executors.party import MergingExecutor
from interlace_workers.executors.resident import ResidentExecutor
from interlace_workers.executors.zygote_process import ZygoteProcess
from interlace_workers.order import Load
from interlace_workers.replica import Replica, give_up
from interlace_workers.telemetry import Telemetry


@dataclass(frozen=True)
class Placement:
    """One model that is to be hosted, its weights on this machine."""

    #: Position in `Config.models`.
    index: int
    model: ModelConfig
    key: ModelKey
    #: What each replica loads.
    load: Load
    #: Where the first replica finds a process that loads it already; "" if there is none.
    ahead: str = ""


def key_of(model: ModelConfig, repo_id: str, *, is_pipeline: bool) -> ModelKey:
    """``is_pipeline``: of diffusers, which has no task."""
    return ModelKey(
        wrapper="DiffusionModel" if is_pipeline else "TransformersModel",
        repo_id=repo_id,
        revision=model.revision,
        task=None if is_pipeline else model.task,
        trust_remote_code=model.trust_remote_code,
    )


def _expected(model: ModelConfig) -> ModelKey:
    """A model's key, as far as it is known before anything is fetched."""
    return key_of(model, sources.name_of(model), is_pipeline=sources.is_pipeline(model))


async def place(config: Config, state: State, say: Callable[[str], None]) -> list[Placement]:
    """Resolve every model side by side and publish its card; one that cannot be resolved is published as failed.

    Says ``placed SLUG`` of each, once the catalogue holds these and no others. Raises ConfigError if two are one model
    to clients.
    """
    _refuse_twins(config, list(map(_expected, config.models)))
    await state.control.publish_weights()
    placed = await asyncio.gather(*(_place(config, state, index, say) for index in range(len(config.models))))
    keys = [key for key, _ in placed]
    _refuse_twins(config, keys)  # once more: the hub may have given two spellings one id
    await _withdraw_others(state, set(keys))
    for key in keys:
        say(f"placed {key.slug}")
    return [placement for _, placement in placed if placement is not None]


def _refuse_twins(config: Config, keys: Sequence[ModelKey]) -> None:
    """Raises ConfigError where two models would share a name, and so a queue."""
    first: dict[ModelKey, int] = {}
    for index, key in enumerate(keys):
        if (other := first.setdefault(key, index)) != index:
            raise ConfigError(
                f"`models[{other}]` ({config.models[other].source}) and `models[{index}]` "
                f"({config.models[index].source}) are both {key} to clients: give one of them another `repo_id`, or "
                "for more copies of one model set `replicas`."
            )


async def _withdraw_others(state: State, keys: set[ModelKey]) -> None:
    """Take models of a former configuration out of the catalogue and end their jobs: a Redis prefix has one placer."""
    for hosted in await state.models.all():
        if (key := hosted.card.key) not in keys:
            await state.models.withdraw(key)
            await state.queue.fail_all(key, f"{key} is no longer hosted on this server.")


async def _place(
    config: Config, state: State, index: int, say: Callable[[str], None]
) -> tuple[ModelKey, Placement | None]:
    model = config.models[index]
    try:
        load, card, files = await asyncio.to_thread(_resolve_blocking, config, model, say)
    except sources.SourceError as error:
        key = _expected(model)
        await state.models.forget_replicas(key)
        await state.models.publish(
            ModelCard(key=key, commit="0" * 40, dtype=model.dtype, config={}, failure=str(error))
        )
        await state.queue.fail_waiting(key, str(ModelFailed(str(key), str(error))))
        say(f"{key}: {error}")
        return key, None
    await state.models.forget_replicas(card.key)
    await state.models.replace_files(card.key, files)
    await state.models.want(card.key, model.first_replicas)
    await state.models.publish(card)
    return card.key, Placement(index=index, model=model, key=card.key, load=load)


def _resolve_blocking(
    config: Config, model: ModelConfig, say: Callable[[str], None]
) -> tuple[Load, ModelCard, dict[str, bytes]]:
    """What to load, a model's card and its hub files, its weights on this machine. Raises SourceError."""
    source = sources.resolve(model, config.cache_dir, say)
    with sources.reading(source.path):
        files = {name: path.read_bytes() for name, path in source.hub_files().items()}
    key = key_of(model, source.repo_id, is_pipeline=source.is_pipeline)
    return _load(config, model, source), sources.card(source, key, model), files


def _load(config: Config, model: ModelConfig, source: sources.Source) -> Load:
    return Load(
        path=str(source.path),
        task=key_of(model, source.repo_id, is_pipeline=source.is_pipeline).task,
        dtype=sources.dtype_of(source, model),
        trust_remote_code=model.trust_remote_code,
        threads=threads_of(config, model),
        isolation=config.isolation_level,
        device=model.device,
        resident=model.executor == "resident",
        is_pipeline=source.is_pipeline,
    )


def threads_of(config: Config, model: ModelConfig) -> int:
    """Processor threads for one job: as configured, or the cores shared evenly among all slots."""
    slots = sum(other.most_replicas * other.slots for other in config.models)
    return model.threads or max(1, (os.cpu_count() or 1) // max(1, slots))


async def build_replica(
    config: Config, state: State, tracing: Tracing, index: int, key: ModelKey, name: str, ahead: str = ""
) -> Replica:
    """A replica of the model at ``index``, not started; ``ahead``: where a process may be that loads it already.

    Raises LoadFailed if this machine has no weights for it.
    """
    model = config.models[index]
    try:
        source = await asyncio.to_thread(sources.resolve, model, config.cache_dir, lambda _: None)
        load = _load(config, model, source)
    except sources.SourceError as error:
        await give_up(state, key, str(error))
        raise LoadFailed(str(error)) from None
    taken = headstart.take(Path(ahead), load) if ahead else None
    zygote = None if taken is None else ZygoteProcess(taken)
    executor: Executor = MergingExecutor(load, zygote)
    if load.resident:
        executor = ResidentExecutor(load, model.trusted, zygote)
    telemetry = Telemetry(state.metrics, tracing, key, name, model.slots)
    return Replica(config, state, key, executor, telemetry, name=name, slots=model.slots)
