"""What operators change while all runs: models that pause, replicas that take no jobs, tenants' weights and limits."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ValidationError

from interlace.protocol.errors import Forbidden, InvalidRequest, UnknownReplica
from interlace.protocol.ids import NAME, REPLICA_ID
from interlace_server import hosting, tenancy
from interlace_server.allow import SharedPath
from interlace_server.changes import note
from interlace_server.doors.auth import Caller, TheCaller
from interlace_server.errors import describe, refusals
from interlace_server.gateway import TheGateway
from interlace_server.tenancy import TenantChanges, TenantControl
from interlace_state.models import HostedModel

_MOST_BYTES = 64 << 10  # of a body


def an_admin(caller: TheCaller) -> Caller:
    """Raises Forbidden for anybody else."""
    if caller.role != "admin":
        raise Forbidden
    return caller


router = APIRouter(prefix="/v1", tags=["admin"], route_class=SharedPath, dependencies=[Depends(an_admin)])

_Model = Annotated[str, Path(max_length=256, description="A hosted model's repo id, or its slug.")]
_ReplicaId = Annotated[str, Path(pattern=f"^{REPLICA_ID}$", description="A replica's id, as `/status` shows it.")]
_Tenant = Annotated[str, Path(pattern=f"^{NAME}$", description="A tenant's name.")]


class ModelControl(BaseModel):
    """Whether a model starts jobs. One that is paused takes them in, and lets those that run end."""

    model: str
    slug: str
    paused: bool


class ReplicaControl(BaseModel):
    """Whether a replica takes no more jobs. Those that it runs end."""

    replica: str
    drained: bool


_SCHEMA = TenantChanges.model_json_schema(ref_template="#/components/schemas/{model}")
_SCHEMA.pop("$defs")  # LimitChanges is among the components: TenantControl has it
_CHANGES = {"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}}


@router.post("/models/{model:path}/pause", responses=refusals(401, 403, 404, 422, 429, 503))
async def pause_model(model: _Model, caller: TheCaller, gateway: TheGateway) -> ModelControl:
    """Start no more of a model's jobs: they wait."""
    return _control(await hosting.pause(gateway, caller, model, paused=True), paused=True)


@router.post("/models/{model:path}/resume", responses=refusals(401, 403, 404, 422, 429, 503))
async def resume_model(model: _Model, caller: TheCaller, gateway: TheGateway) -> ModelControl:
    """Start a paused model's jobs again."""
    return _control(await hosting.pause(gateway, caller, model, paused=False), paused=False)


def _control(model: HostedModel, *, paused: bool) -> ModelControl:
    return ModelControl(model=model.card.key.repo_id, slug=model.card.key.slug, paused=paused)


@router.post("/replicas/{replica}/drain", responses=refusals(401, 403, 404, 422, 429, 503))
async def drain_replica(replica: _ReplicaId, caller: TheCaller, gateway: TheGateway) -> ReplicaControl:
    """Give a replica no more jobs; it stays loaded."""
    models = await gateway.state.models.all()
    known = [one.id for model in models for one in model.replicas]
    if replica not in known:
        raise UnknownReplica(f"There is no replica {replica}. Those that give a sign of life: {', '.join(known)}.")
    await gateway.state.control.drain(replica)
    note(gateway, caller, "replica drained", replica=replica)
    return ReplicaControl(replica=replica, drained=True)


@router.delete("/replicas/{replica}/drain", responses=refusals(401, 403, 422, 429, 503))
async def undrain_replica(replica: _ReplicaId, caller: TheCaller, gateway: TheGateway) -> ReplicaControl:
    """Give a drained replica jobs again; one that was not drained is fine."""
    await gateway.state.control.undrain(replica)
    note(gateway, caller, "replica undrained", replica=replica)
    return ReplicaControl(replica=replica, drained=False)


@router.get("/tenants/{tenant}", responses=refusals(401, 403, 422, 429, 503))
async def show_tenant(tenant: _Tenant, gateway: TheGateway) -> TenantControl:
    """A tenant's weight, 1 where nobody has set another, and the limits that were set at run time."""
    return await tenancy.terms(gateway, tenant)


@router.put("/tenants/{tenant}", responses=refusals(401, 403, 408, 413, 422, 429, 503), openapi_extra=_CHANGES)
async def change_tenant(tenant: _Tenant, request: Request, caller: TheCaller, gateway: TheGateway) -> TenantControl:
    """Set a tenant's weight, its limits, or both, for jobs that start and requests that come from now on."""
    return await tenancy.change(gateway, caller, tenant, await _changes(request))


async def _changes(request: Request) -> TenantChanges:
    """The request's body, of which we read a little only: it is parsed while others wait. Raises InvalidRequest."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise InvalidRequest(f"The body is over {_MOST_BYTES:,} bytes; expected a weight and limits as JSON.")
    try:
        return TenantChanges.model_validate_json(body)
    except ValidationError as error:
        raise InvalidRequest(describe(error, "The request", TenantChanges)) from None
