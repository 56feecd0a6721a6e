"""What an operator does with hosted models: deploy, scale, evict, pause. The API's routes and the pages call these."""

import time

from pydantic import BaseModel, ConfigDict, Field

from interlace.protocol.errors import InvalidRequest, UnknownModel
from interlace.protocol.hosting import ModelView, Moment, Origin, Phase
from interlace.protocol.model import ModelKey, is_repo_id
from interlace_server import on_demand
from interlace_server.changes import note
from interlace_server.doors.auth import Caller
from interlace_server.gateway import Gateway
from interlace_server.views import model_view
from interlace_state import hostable
from interlace_state.desired import Desired, new_generation
from interlace_state.models import HostedModel, ModelState
from interlace_state.settings.models import MOST_REPLICAS, Autoscale, ModelConfig


class ModelChanges(BaseModel):
    """What of a hosted model can change while it runs; what is left out stays."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    replicas: int | None = Field(default=None, ge=1, le=MOST_REPLICAS)
    #: In place of `replicas`.
    autoscale: Autoscale | None = None
    #: null: never.
    idle_seconds: float | None = Field(default=None, ge=0, le=10_000_000)
    pin: bool | None = None


async def deploy(gateway: Gateway, caller: Caller, model: ModelConfig) -> ModelView:
    """Host a model; one that is hosted is hosted so from now on. Raises InvalidRequest."""
    key = _key(model)
    if (reason := hostable.against(model, gateway.config) or hostable.too_tight(gateway.config)) is not None:
        raise InvalidRequest(f"{key} cannot be hosted so: {reason}")
    former = await gateway.state.models.look(key)
    failed = former is not None and former.state is ModelState.FAILED

    def wanted(one: Desired | None) -> Desired:
        if one is None:
            generation = new_generation()
            return Desired(key=key, model=model, origin=Origin.DEPLOYED, generation=generation, asked_at=time.time())
        fresh = failed or _loads(one.model) != _loads(model)
        origin = Origin.CONFIGURED if one.configured is not None else Origin.DEPLOYED
        changes = {"model": model, "origin": origin, "resting": False, "asked_at": time.time()}
        return one.model_copy(update=changes | {"generation": one.generation + fresh})

    before = await gateway.state.desired.find(key)
    after = await gateway.state.desired.change(key, wanted)
    if former is not None and after is not None and (before is None or after.generation != before.generation):
        moment = Moment(phase=Phase.QUEUED, text="It starts anew, as it was asked for now.", at=round(time.time(), 3))
        await gateway.state.desired.say(key, moment)
    await on_demand.announce(gateway.state, key, model)
    note(gateway, caller, "model deployed", model=str(key), **model.model_dump(exclude_defaults=True))
    return await _view(gateway, key)


async def scale(gateway: Gateway, caller: Caller, name: str, changes: ModelChanges) -> ModelView:
    """Change how many replicas run, how long it may be idle, or its pin. Raises as `hosted`, InvalidRequest."""
    key = (await hosted(gateway, name)).card.key
    said = {field: getattr(changes, field) for field in changes.model_fields_set}
    if changes.replicas is not None and changes.autoscale is not None:
        raise InvalidRequest("Both `replicas` and `autoscale` are given: one of them says how many run.")
    if changes.replicas is not None:
        said |= {"autoscale": None}
    elif changes.autoscale is not None:
        said |= {"replicas": 1}
    said = {
        field: value for field, value in said.items() if value is not None or field in ("idle_seconds", "autoscale")
    }
    record = await gateway.state.desired.change(
        key, lambda one: one and one.model_copy(update={"model": one.model.model_copy(update=said)})
    )
    if record is None:
        raise _no_record(key)
    note(gateway, caller, "model scaled", model=str(key), **changes.model_dump(exclude_unset=True))
    return await _view(gateway, key)


async def evict(gateway: Gateway, caller: Caller, name: str, *, forget: bool = False) -> ModelView:
    """Take a model out of memory, or host it no longer. Raises as `hosted`, InvalidRequest."""
    found = await hosted(gateway, name)
    key, state = found.card.key, gateway.state
    record = await state.desired.find(key)
    if record is None:
        raise _no_record(key)
    if forget and record.configured is not None:
        raise InvalidRequest(
            f"{key} is in the configuration file, which would bring it back: take it out of there and start again, or "
            "evict it without `forget`."
        )
    before = await model_view(state, found)
    if forget:
        await state.desired.remove(key)
    else:
        await state.desired.rest(key, resting=True)
    note(gateway, caller, "model forgotten" if forget else "model evicted", model=str(key))
    return before if forget else await _view(gateway, key)


async def pause(gateway: Gateway, caller: Caller, name: str, *, paused: bool) -> HostedModel:
    """Start no more of a model's jobs, or start them again. Raises as `hosted`."""
    found = await hosted(gateway, name)
    control = gateway.state.control
    await (control.pause(found.card.key) if paused else control.resume(found.card.key))
    note(gateway, caller, "model paused" if paused else "model resumed", model=str(found.card.key))
    return found


async def hosted(gateway: Gateway, name: str) -> HostedModel:
    """The model with this slug or repo id. Raises UnknownModel, or InvalidRequest where a repo id names several."""
    models = await gateway.state.models.all()
    found = [model for model in models if name in (model.card.key.slug, model.card.key.repo_id)]
    if not found:
        raise UnknownModel(name[:256], [model.card.key.repo_id for model in models])
    if len(found) > 1:
        slugs = ", ".join(model.card.key.slug for model in found)
        raise InvalidRequest(f"{name} is hosted {len(found)} times; name one of: {slugs}.")
    return found[0]


def _key(model: ModelConfig) -> ModelKey:
    """What clients will write. Raises InvalidRequest."""
    name = model.repo_id or model.source
    if not is_repo_id(name):
        raise InvalidRequest(
            f"`source` is {model.source[:200]!r}, no hub id: give the `repo_id` that clients shall write."
        )
    task, trust = model.task, model.trust_remote_code
    return ModelKey(repo_id=name, revision=model.revision, task=task, trust_remote_code=trust)


def _loads(model: ModelConfig) -> ModelConfig:
    """What of it a replica must start anew for."""
    return model.model_copy(update={"replicas": 1, "autoscale": None, "idle_seconds": None, "pin": False})


async def _view(gateway: Gateway, key: ModelKey) -> ModelView:
    found: HostedModel | None = await gateway.state.models.look(key)
    if found is None:
        raise UnknownModel(str(key), ())
    return await model_view(gateway.state, found)


def _no_record(key: ModelKey) -> InvalidRequest:
    return InvalidRequest(f"No placement loop looks after {key}: it leaves just now, or no workers run.")
