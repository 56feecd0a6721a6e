"""Models that requests bring: whether they may, and the record that has the placement loop fetch them."""

import asyncio
import time

from interlace.protocol.errors import NotAllowed, TooMany
from interlace.protocol.hosting import Origin
from interlace.protocol.model import ModelKey
from interlace_server.gateway import Gateway
from interlace_state import log
from interlace_state.desired import Desired, new_generation
from interlace_state.models import HostedModel, ModelCard
from interlace_state.settings.models import ModelConfig
from interlace_state.store import State

NO_COMMIT = "0" * 40  # of a model whose files nobody has seen yet
_RETRY_AFTER = 60  # seconds
_LOOK = 0.2  # seconds


def is_on(gateway: Gateway) -> bool:
    return bool(gateway.config.on_demand.allow)


async def bring(gateway: Gateway, key: ModelKey) -> HostedModel:
    """Have a model hosted that a request asks for, out of memory until its first job.

    Raises NotAllowed with what is allowed, TooMany.
    """
    policy, state = gateway.config.on_demand, gateway.state
    hosted = [model.card.key.repo_id for model in await state.models.all()]
    if not policy.allows(key.repo_id):
        raise NotAllowed(str(key), policy.allow, hosted)
    if key.trust_remote_code:
        raise NotAllowed(f"{key.repo_id} with `trust_remote_code`", policy.allow, hosted)
    await _make_room(gateway)
    model = ModelConfig(
        source=key.repo_id,
        repo_id=key.repo_id,
        revision=key.revision,
        task=key.task or "text-generation",
        idle_seconds=policy.idle_seconds,
    )
    record = Desired(
        key=key,
        model=model,
        origin=Origin.ON_DEMAND,
        resting=True,
        generation=new_generation(),
        asked_at=time.time(),
    )
    await state.desired.change(key, lambda former: former or record)
    await announce(state, key, model)
    with log.instead_of(OSError, "audit_failed"):
        state.audit.write("model asked for", model=str(key))
    return await state.models.find(key)


async def announce(state: State, key: ModelKey, model: ModelConfig) -> None:
    """Have a model in the catalogue of which nothing is known yet but its name."""
    await state.models.announce(ModelCard(key=key, commit=NO_COMMIT, dtype=model.dtype, config={}))


async def described(gateway: Gateway, key: ModelKey, seconds: float) -> ModelCard | None:
    """The card of a model, once its small files are here; None if they are not within so many ``seconds``."""
    until = time.monotonic() + seconds
    while True:
        found = await gateway.state.models.look(key)
        if found is not None and (found.card.commit != NO_COMMIT or found.card.failure is not None):
            return found.card
        if time.monotonic() > until:
            return None
        await asyncio.sleep(_LOOK)


async def _make_room(gateway: Gateway) -> None:
    """Forget who was asked for longest ago, where too many are known. Raises TooMany if none can go."""
    most, state = gateway.config.on_demand.most, gateway.state
    brought = [one for one in await state.desired.all() if one.origin is Origin.ON_DEMAND]
    if len(brought) < most:
        return
    for one in sorted(brought, key=lambda one: one.asked_at):
        if one.resting and not await state.queue.length(one.key):
            await state.desired.remove(one.key)
            return
    raise TooMany("The number of models on demand", most, "models", "on_demand.most", retry_after=_RETRY_AFTER)
