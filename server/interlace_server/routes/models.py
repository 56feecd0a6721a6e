"""`/v1/models`: which models are hosted and where each stands; for an admin, what shall be hosted."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.responses import StreamingResponse

from interlace.protocol.errors import InvalidRequest, UnknownModel
from interlace.protocol.hosting import ModelList, ModelView, Moment, Origin, Phase
from interlace.protocol.model import ModelKey, is_repo_id
from interlace_server import on_demand, sse
from interlace_server.allow import SharedPath
from interlace_server.doors.auth import Caller, TheCaller
from interlace_server.errors import Responses, describe, refusals
from interlace_server.gateway import Gateway, TheGateway
from interlace_server.routes.admin import an_admin, hosted, note
from interlace_server.views import model_view
from interlace_state.config import Autoscale, ModelConfig
from interlace_state.desired import Desired
from interlace_state.life import order
from interlace_state.models import HostedModel, ModelState

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=SharedPath)

_MOST_BYTES = 64 << 10  # of a body
_Body = TypeVar("_Body", bound=BaseModel)
_STREAM: Responses = {
    200: {
        "description": "Server-sent events `model`; `data` is a ModelEvent as JSON.",
        "content": {sse.MEDIA_TYPE: {"itemSchema": sse.schema("model")}},
    }
}


class _NameConvertor(StringConvertor):
    """A repo id or a slug, and none of the paths of `admin` below it."""

    regex = r".+(?<!/pause)(?<!/resume)"


register_url_convertor("hosted", _NameConvertor())
_Model = Annotated[
    str,
    Path(
        max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*$", description="A hosted model's repo id, or its slug."
    ),
]
_Admin = Annotated[Caller, Depends(an_admin)]


class ModelChanges(BaseModel):
    """What of a hosted model can change while it runs; what is left out stays."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    replicas: int | None = Field(default=None, ge=1)
    #: In place of `replicas`.
    autoscale: Autoscale | None = None
    #: null: never.
    idle_seconds: float | None = Field(default=None, ge=0, le=10_000_000)
    pin: bool | None = None


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    for field in schema["properties"].values():  # the one section that is in both
        for one in field.get("anyOf", []):
            if one.get("$ref", "").endswith("/Autoscale"):
                one.clear()
                one.update(Autoscale.model_json_schema())
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.get("", responses=refusals(401, 422, 429, 503))
async def list_models(caller: TheCaller, gateway: TheGateway) -> ModelList:
    """The hosted models that the caller may use, and where each stands."""
    found = [one for one in await gateway.state.models.all() if caller.reaches(one.card.key.repo_id)]
    return ModelList(models=[await model_view(gateway.state, one) for one in found])


@router.post(
    "", status_code=202, responses=refusals(401, 403, 408, 413, 422, 429, 503), openapi_extra=_body(ModelConfig)
)
async def deploy_model(request: Request, caller: _Admin, gateway: TheGateway) -> ModelView:
    """Host a model, in the words of the configuration's `models`; one that is hosted is hosted so from now on.

    What needs no new start changes at once; else its replicas start anew, and its jobs wait.
    """
    model = await _read(request, ModelConfig)
    key = _key(model)
    former = await gateway.state.models.look(key)
    failed = former is not None and former.state is ModelState.FAILED

    def wanted(one: Desired | None) -> Desired:
        if one is None:
            return Desired(key=key, model=model, origin=Origin.DEPLOYED, asked_at=time.time())
        fresh = failed or _loads(one.model) != _loads(model)
        origin = Origin.CONFIGURED if one.configured is not None else Origin.DEPLOYED
        changes = {"model": model, "origin": origin, "resting": False, "asked_at": time.time()}
        return one.model_copy(update=changes | {"generation": one.generation + fresh})

    before = await gateway.state.desired.find(key)
    after = await gateway.state.desired.change(key, wanted)
    if before is not None and after is not None and after.generation != before.generation:
        moment = Moment(phase=Phase.QUEUED, text="It starts anew, as it was asked for now.", at=round(time.time(), 3))
        await gateway.state.desired.say(key, moment)
    await on_demand.announce(gateway.state, key, model)
    note(gateway, caller, "model deployed", model=str(key), **model.model_dump(exclude_defaults=True))
    return await _view(gateway, key)


@router.get("/events", response_class=StreamingResponse, responses=_STREAM | refusals(401, 404, 422, 429, 503))
async def model_events(
    caller: TheCaller,
    gateway: TheGateway,
    model: Annotated[str | None, Query(max_length=256, description="Only this repo id or slug.")] = None,
    after: Annotated[str | None, Query(pattern=sse.EVENT_ID, description="Only events after this id.")] = None,
    last_event_id: Annotated[str | None, Header(pattern=sse.EVENT_ID, description="Goes before `after`.")] = None,
    follow: Annotated[bool, Query(description="Go on with what happens from now on.")] = True,
) -> StreamingResponse:
    """What happened to the models that the caller may use, then what happens, for an hour: resume with `Last-Event-ID`.

    The last 2,000 events of all models are kept. A comment comes when nothing has for 15 seconds.
    """
    slug = None if model is None else (await _reached(gateway, caller, model)).card.key.slug
    newest = await gateway.state.life.newest()
    after = min(last_event_id or after or "0-0", newest, key=order)
    events = _events(gateway, caller, slug, after, None if follow else newest)
    stream = sse.stream(gateway, events, "models")
    return StreamingResponse(stream, media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)


async def _events(
    gateway: Gateway, caller: Caller, slug: str | None, after: str, until: str | None
) -> AsyncIterator[bytes]:
    async for event_id, event in gateway.state.life.follow(after, until):
        if caller.reaches(event.model) and slug in (None, event.slug):
            yield sse.sent(event_id, "model", event.model_dump_json().encode())


@router.get("/{model:hosted}", responses=refusals(401, 404, 422, 429, 503))
async def show_model(model: _Model, caller: TheCaller, gateway: TheGateway) -> ModelView:
    """One model, with what happened to it lately."""
    return await model_view(gateway.state, await _reached(gateway, caller, model), history=True)


@router.patch(
    "/{model:hosted}",
    responses=refusals(401, 403, 404, 408, 413, 422, 429, 503),
    openapi_extra=_body(ModelChanges),
)
async def scale_model(model: _Model, request: Request, caller: _Admin, gateway: TheGateway) -> ModelView:
    """Change how many replicas run, how long it may be idle, or whether it is pinned; none starts anew for it."""
    changes = await _read(request, ModelChanges)
    key = (await hosted(gateway, model)).card.key
    said = {name: getattr(changes, name) for name in changes.model_fields_set}
    if changes.replicas is not None and changes.autoscale is not None:
        raise InvalidRequest("Both `replicas` and `autoscale` are given: one of them says how many run.")
    if changes.replicas is not None:
        said |= {"autoscale": None}
    elif changes.autoscale is not None:
        said |= {"replicas": 1}
    said = {name: value for name, value in said.items() if value is not None or name in ("idle_seconds", "autoscale")}
    record = await gateway.state.desired.change(
        key, lambda one: one and one.model_copy(update={"model": one.model.model_copy(update=said)})
    )
    if record is None:
        raise _no_record(key)
    note(gateway, caller, "model scaled", model=str(key), **changes.model_dump(exclude_unset=True))
    return await _view(gateway, key)


@router.delete("/{model:hosted}", status_code=202, responses=refusals(401, 403, 404, 422, 429, 503))
async def evict_model(
    model: _Model,
    caller: _Admin,
    gateway: TheGateway,
    forget: Annotated[
        bool, Query(description="Host it no longer: jobs that wait for it end, and so do those that run.")
    ] = False,
) -> ModelView:
    """Take a model out of memory. Jobs that run may end; those that wait, and the next one, bring it back."""
    found = await hosted(gateway, model)
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


async def _reached(gateway: Gateway, caller: Caller, model: str) -> HostedModel:
    """A hosted model by repo id or slug. Raises UnknownModel, also for one that the caller may not use."""
    found = await hosted(gateway, model)
    if not caller.reaches(found.card.key.repo_id):
        raise UnknownModel(model[:256], caller.models or ())
    return found


async def _view(gateway: Gateway, key: ModelKey) -> ModelView:
    found: HostedModel | None = await gateway.state.models.look(key)
    if found is None:
        raise UnknownModel(str(key), ())
    return await model_view(gateway.state, found)


def _no_record(key: ModelKey) -> InvalidRequest:
    return InvalidRequest(f"No placement loop looks after {key}: do the workers run?")


async def _read(request: Request, kind: type[_Body]) -> _Body:
    """The request's body, of which we read a little only. Raises InvalidRequest."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise InvalidRequest(f"The body is over {_MOST_BYTES:,} bytes; expected a JSON object.")
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise InvalidRequest(describe(error.errors(), "The request")) from None
