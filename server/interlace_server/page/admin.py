"""`/page/admin`: what an operator does with hosted models."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from interlace.protocol.errors import InvalidRequest
from interlace_server import hosting
from interlace_server.doors.auth import TheCaller
from interlace_server.errors import describe
from interlace_server.gateway import TheGateway
from interlace_server.page.frame import Nav, PageRoute, done, page, saying
from interlace_server.page.home import row_of, rows_of
from interlace_server.routes.admin import an_admin
from interlace_state.settings.models import Autoscale, ModelConfig

NAV = Nav("/page/admin", "Admin", 90, admin=True)
router = APIRouter(
    prefix="/page/admin", route_class=PageRoute, include_in_schema=False, dependencies=[Depends(an_admin)]
)

HERE = "/page/admin"
_Model = Annotated[str, Form(min_length=1, max_length=256)]
_Text = Annotated[str, Form(max_length=512)]
saying(
    deployed="The model was asked for: it is fetched and loaded now.",
    evicted="The model leaves the memory; the next job brings it back.",
    gone="The model is hosted no longer.",
    scaled="The model is hosted so from now on.",
    paused="The model starts no more jobs: they wait.",
    resumed="The model starts jobs again.",
)


@router.get("")
async def models(request: Request, caller: TheCaller, gateway: TheGateway) -> Response:
    return page(request, "admin.html", rows=await rows_of(gateway, caller), tab="models", dtypes=_choices("dtype"))


@router.get("/model")
async def model(
    request: Request, caller: TheCaller, gateway: TheGateway, name: Annotated[str, Query(max_length=256)]
) -> Response:
    """One model, with what happened to it."""
    found = await hosting.hosted(gateway, name)
    row = await row_of(gateway, found)
    history = await gateway.state.desired.history(found.card.key)
    return page(request, "admin_model.html", row=row, history=history[::-1], tab="models", replicas=found.replicas)


@router.post("/deploy")
async def deploy(
    caller: TheCaller,
    gateway: TheGateway,
    source: _Text = "",
    task: _Text = "",
    dtype: _Text = "",
    replicas: _Text = "1",
    idle_minutes: _Text = "",
    pin: _Text = "",
) -> Response:
    said: dict[str, Any] = {"source": source.strip(), "replicas": replicas, "pin": bool(pin)}
    said |= {name: text.strip() for name, text in (("task", task), ("dtype", dtype)) if text.strip()}
    if idle_minutes.strip():
        said["idle_seconds"] = 60 * _number(idle_minutes, "idle_minutes")
    try:
        wanted = ModelConfig.model_validate(said)
    except ValidationError as error:
        raise InvalidRequest(describe(error, "The form", ModelConfig)) from None
    await hosting.deploy(gateway, caller, wanted)
    return done(HERE, "deployed")


@router.post("/evict")
async def evict(caller: TheCaller, gateway: TheGateway, model: _Model, forget: _Text = "") -> Response:
    await hosting.evict(gateway, caller, model, forget=bool(forget))
    return done(HERE, "gone" if forget else "evicted")


@router.post("/pause")
async def pause(caller: TheCaller, gateway: TheGateway, model: _Model, paused: _Text = "") -> Response:
    await hosting.pause(gateway, caller, model, paused=bool(paused))
    return done(HERE, "paused" if paused else "resumed")


@router.post("/scale")
async def scale(
    caller: TheCaller,
    gateway: TheGateway,
    model: _Model,
    least: _Text = "1",
    most: _Text = "1",
    idle_minutes: _Text = "",
    pin: _Text = "",
) -> Response:
    """As many replicas as that, or by need between two numbers; idle for so long, or pinned."""
    said: dict[str, Any] = {"pin": bool(pin)}
    said["idle_seconds"] = 60 * _number(idle_minutes, "idle_minutes") if idle_minutes.strip() else None
    try:
        if least == most:
            said["replicas"] = int(least)
        else:
            said["autoscale"] = Autoscale.model_validate({"least": least, "most": most})
        changes = hosting.ModelChanges.model_validate(said)
    except ValidationError as error:
        raise InvalidRequest(describe(error, "The form", hosting.ModelChanges)) from None
    except ValueError:
        raise InvalidRequest(f"`least` is {least[:20]!r}; expected a number of replicas.") from None
    await hosting.scale(gateway, caller, model, changes)
    return done(HERE, "scaled")


def _number(text: str, field: str) -> float:
    """Raises InvalidRequest."""
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"`{field}` is {text[:20]!r}; expected a number.") from None


def _choices(field: str) -> list[str]:
    """What a field of a model's configuration may be."""
    return list(ModelConfig.model_json_schema()["properties"][field]["enum"])
