"""`/v1/models`: which models are hosted and where each stands; for an admin, what shall be hosted."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel, ValidationError
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.responses import StreamingResponse

from interlace.protocol.errors import InvalidRequest, UnknownModel
from interlace.protocol.hosting import ModelList, ModelView
from interlace.protocol.ids import EVENT_ID, MODEL
from interlace_server import hosting, sse
from interlace_server.allow import SharedPath
from interlace_server.doors.auth import Caller, TheCaller
from interlace_server.errors import Responses, describe, refusals
from interlace_server.gateway import Gateway, TheGateway
from interlace_server.hosting import ModelChanges, hosted
from interlace_server.routes.admin import an_admin
from interlace_server.views import model_view
from interlace_state.life import order
from interlace_state.models import HostedModel
from interlace_state.settings.models import Autoscale, ModelConfig

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
    Path(max_length=256, pattern=f"^{MODEL}$", description="A hosted model's repo id, or its slug."),
]
_Admin = Annotated[Caller, Depends(an_admin)]


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
    return await hosting.deploy(gateway, caller, await _read(request, ModelConfig))


@router.get("/events", response_class=StreamingResponse, responses=_STREAM | refusals(401, 404, 422, 429, 503))
async def model_events(
    caller: TheCaller,
    gateway: TheGateway,
    model: Annotated[str | None, Query(max_length=256, description="Only this repo id or slug.")] = None,
    after: Annotated[str | None, Query(pattern=f"^{EVENT_ID}$", description="Only events after this id.")] = None,
    last_event_id: Annotated[str | None, Header(pattern=f"^{EVENT_ID}$", description="Goes before `after`.")] = None,
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
    return await hosting.scale(gateway, caller, model, await _read(request, ModelChanges))


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
    return await hosting.evict(gateway, caller, model, forget=forget)


async def _reached(gateway: Gateway, caller: Caller, model: str) -> HostedModel:
    """A hosted model by repo id or slug. Raises UnknownModel, also for one that the caller may not use."""
    found = await hosted(gateway, model)
    if not caller.reaches(found.card.key.repo_id):
        raise UnknownModel(model[:256], caller.models or ())
    return found


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
        raise InvalidRequest(describe(error, "The request", kind)) from None
