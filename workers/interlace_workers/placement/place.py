"""From a model that shall be hosted to what a runtime can start: resolve the weights, publish the catalogue."""

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from interlace.protocol.errors import ModelFailed, UnknownModel
from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.config_file import ConfigError
from interlace_state.models import ModelCard
from interlace_state.settings.models import ModelConfig
from interlace_state.store import State
from interlace_state.tracing import Tracing
from interlace_workers.executors.base import Executor, LoadFailed
from interlace_workers.executors.resident import ResidentExecutor
from interlace_workers.executors.sharing import SharingExecutor
from interlace_workers.executors.zygote_process import ZygoteProcess
from interlace_workers.order import Load
from interlace_workers.placement import headstart, memory
from interlace_workers.placement.memory import SHARED_BYTES
from interlace_workers.replicas.replica import Replica, give_up
from interlace_workers.replicas.telemetry import Telemetry
from interlace_workers.sources import card as cards
from interlace_workers.sources import naming, resolving, weights
from interlace_workers.sources.source import Source, SourceError

#: A download takes one for as long as it lasts: those of asyncio are for what is over soon.
_FINDING = ThreadPoolExecutor(32, thread_name_prefix="find")


@dataclass(frozen=True)
class Placement:
    """One model that is to be hosted, its weights on this machine."""

    #: With the processor threads that a job of it gets.
    model: ModelConfig
    key: ModelKey
    #: What each replica loads.
    load: Load
    #: Bytes of memory that a replica takes.
    need_bytes: int
    #: Of its record.
    generation: int = 0
    #: Where a replica that starts may find a process that loads it already; "" if it never does.
    ahead: str = ""
    #: Where its replicas meet that share the weights; "" if they do not.
    share: str = ""

    def bytes_of(self, replicas: int) -> int:
        """What so many of them take; those that share the weights take little each."""
        more = SHARED_BYTES if self.share else self.need_bytes
        return self.need_bytes + (replicas - 1) * more if replicas else 0


@dataclass(frozen=True)
class Search:
    """How a model's files are looked for."""

    #: Takes lines for people.
    say: Callable[[str], None]
    #: Takes the bytes that are here, and those in all.
    tell: Callable[[int, int], None] | None = None
    #: The largest checkpoint that may come; None: any.
    most_bytes: int | None = None
    #: Configuration and tokenizer only.
    small: bool = False


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
    return key_of(model, naming.name_of(model), is_pipeline=resolving.is_pipeline(model))


async def place(config: Config, state: State, say: Callable[[str], None]) -> list[Placement]:
    """Resolve every configured model side by side, publish its card, and have a record of it.

    One that cannot be resolved is published as failed. What commands and requests have brought before stays.

    Says ``not placed KEY: why`` of such a one, and ``placed SLUG`` of each once the catalogue holds what shall be
    hosted and no others. Raises ConfigError if two are one model to clients.
    """
    _refuse_twins(config, list(map(_expected, config.models)))
    await state.control.publish_weights()
    placed = await asyncio.gather(*(_place(config, state, index, say) for index in range(len(config.models))))
    keys = [key for key, _ in placed]
    _refuse_twins(config, keys)  # once more: the hub may have given two spellings one id
    await state.desired.seed(dict(zip(keys, config.models, strict=True)))
    await _withdraw_others(state, {record.key for record in await state.desired.all()})
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
        if hosted.card.key not in keys:
            await withdraw(state, hosted.card.key)


async def withdraw(state: State, key: ModelKey) -> None:
    """Take a model out of the catalogue, and end its jobs."""
    await state.models.withdraw(key)
    await state.queue.fail_all(key, f"{key} is no longer hosted on this server.")


async def _place(
    config: Config, state: State, index: int, say: Callable[[str], None]
) -> tuple[ModelKey, Placement | None]:
    model = config.models[index]
    try:
        placement = await find(config, state, model, Search(say, lambda done, total: None))
    except SourceError as error:
        key = _expected(model)
        await refuse(state, key, model, str(error))
        say(f"not placed {key}: {error}")
        return key, None
    await state.models.want(placement.key, model.first_replicas)
    return placement.key, placement


async def find(config: Config, state: State, model: ModelConfig, search: Search) -> Placement:
    """Get a model's files onto this machine, and publish its card and what clients need of it. Raises SourceError.

    Who cancels it ends the download, too.
    """
    loop, over = asyncio.get_running_loop(), threading.Event()
    wanted = replace(search, tell=None if search.tell is None else partial(_tell, search.tell, over))
    try:
        load, card, files = await loop.run_in_executor(_FINDING, _resolve_blocking, config, model, wanted)
    finally:
        over.set()
    await state.models.forget_replicas(card.key)
    await state.models.replace_files(card.key, files)
    await state.models.publish(card)
    fixed = model.model_copy(update={"threads": load.threads})
    return Placement(fixed, card.key, load, memory.need(card.size_bytes, config.memory))


def _tell(tell: Callable[[int, int], None], over: threading.Event, done: int, total: int) -> None:
    if over.is_set():
        raise SourceError("It is wanted no longer.")
    tell(done, total)


async def refuse(state: State, key: ModelKey, model: ModelConfig, reason: str) -> None:
    """Publish why a model cannot be hosted, and end its jobs with that."""
    await state.models.forget_replicas(key)
    try:
        card = (await state.models.find(key)).card
    except UnknownModel:
        card = ModelCard(key=key, commit="0" * 40, dtype=model.dtype, config={})
    await state.models.publish(card.model_copy(update={"failure": reason}))
    await state.queue.fail_waiting(key, str(ModelFailed(str(key), reason)))


def _resolve_blocking(config: Config, model: ModelConfig, search: Search) -> tuple[Load, ModelCard, dict[str, bytes]]:
    """What to load, a model's card and its hub files, its weights on this machine. Raises SourceError."""
    source = resolving.find(model, config.cache_dir, search.say, search.tell, search.most_bytes, small=search.small)
    with weights.reading(source.path):
        files = {name: path.read_bytes() for name, path in source.hub_files().items()}
    key = key_of(model, source.repo_id, is_pipeline=source.is_pipeline)
    card = cards.card(source, key, model)
    return _load(config, model, source, card), card, files


def _load(config: Config, model: ModelConfig, source: Source, card: ModelCard) -> Load:
    return Load(
        path=str(source.path),
        task=card.key.task,
        dtype=model.quantization or cards.dtype_of(source, model),
        trust_remote_code=model.trust_remote_code,
        threads=threads_of(config, model),
        isolation=config.isolation_level,
        device=model.device,
        resident=model.executor == "resident",
        is_pipeline=source.is_pipeline,
        size_bytes=0 if model.executor == "resident" else card.size_bytes or 0,
    )


def threads_of(config: Config, model: ModelConfig) -> int:
    """Processor threads for one job: as configured, or the cores shared evenly among all slots."""
    slots = sum(other.most_replicas * other.slots for other in config.models)
    return model.threads or max(1, (os.cpu_count() or 1) // max(1, slots))


async def build_replica(
    config: Config,
    state: State,
    tracing: Tracing,
    model: ModelConfig,
    key: ModelKey,
    name: str,
    ahead: str = "",
    share: str = "",
) -> Replica:
    """A replica of a model, not started; ``ahead`` and ``share`` as of a `Placement`.

    Raises LoadFailed if this machine has no weights for it.
    """
    try:
        source = await asyncio.to_thread(resolving.resolve, model, config.cache_dir, lambda _: None)
        load = _load(config, model, source, await asyncio.to_thread(cards.card, source, key, model))
    except SourceError as error:
        await give_up(state, key, str(error))
        raise LoadFailed(str(error)) from None
    taken = headstart.take(Path(ahead), load) if ahead else None
    zygote = None if taken is None else ZygoteProcess(taken)
    executor: Executor = SharingExecutor(load, share, zygote)
    if load.resident:
        executor = ResidentExecutor(load, model.trusted, zygote)
    telemetry = Telemetry(state.metrics, tracing, key, name, model.slots)
    return Replica(config, state, key, executor, telemetry, name=name, slots=model.slots)
