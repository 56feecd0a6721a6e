"""Stock nnsight's HTTP routes; its WebSocket is in `subscribe.py`."""

import hashlib
import platform
import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from pydantic import BaseModel
from redis.exceptions import RedisError

from interlace.protocol.errors import InterlaceError, ModelFailed, UnknownModel
from interlace.protocol.event import Ended
from interlace.protocol.job import Job, Limits
from interlace.protocol.model import ModelKey
from interlace_server import log, nnsight_wire
from interlace_server.admission import check_payload
from interlace_server.auth import Caller, Identity, TheCaller, identity_of
from interlace_server.deployments import Overview, overview
from interlace_server.errors import refusals
from interlace_server.gateway import Gateway, TheGateway
from interlace_server.nnsight_wire import Envelope, Update
from interlace_server.routes.results import result_url
from interlace_state.config import Admission
from interlace_state.models import HostedModel, ModelState

router = APIRouter(tags=["nnsight"])

_VERSION_HEADERS: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "header", "required": True, "schema": {"type": "string", "pattern": pattern}}
        for name, pattern in (("nnsight-version", r"^\d+\.\d+\.\d+"), ("python-version", r"^\d+\.\d+"))
    ]
}
_ENVELOPE = {"contentMediaType": "application/json", "contentSchema": Envelope.model_json_schema()}


class Connected(BaseModel):
    status: Literal["connected"] = "connected"


class Environment(BaseModel):
    """What the workers run; ``nnsight.compare()`` holds it against the client."""

    python_version: str
    packages: dict[str, str]


@router.post(
    "/request", responses=refusals(400, 401, 404, 408, 409, 413, 422, 429, 503), openapi_extra=_VERSION_HEADERS
)
async def submit(
    data: Annotated[str, Form(description="The envelope: a JSON object.", json_schema_extra=_ENVELOPE)],
    blob: Annotated[UploadFile, File(description="The payload: a serialized trace.")],
    caller: TheCaller,
    request: Request,
    gateway: TheGateway,
) -> Update:
    """Take a job in; it is durable when this answers."""
    envelope = Envelope.parse(data)
    model = await _servable(gateway, envelope.model, caller)
    limits = gateway.config.limits_of(caller.tenant, caller.role)
    payload = await blob.read()
    check_payload(payload, compress=envelope.compress, limits=limits)
    job = _job(envelope, caller.tenant, limits, len(payload))
    await _accept(gateway, job, payload, limits, model_ready=model.state is ModelState.READY)
    with log.instead_of(OSError, "audit_failed"):  # the job is in
        _note(gateway, caller, job, payload, request)
    if model.state is not ModelState.READY:
        await _look_again(gateway, model.card.key, caller)
    return nnsight_wire.received(job.id)


async def _look_again(gateway: Gateway, key: ModelKey, caller: Caller) -> None:
    """End jobs that were taken in for a model just after the workers had given it up and ended those that waited."""
    try:
        await _servable(gateway, key, caller)
    except (ModelFailed, UnknownModel) as error:
        await gateway.state.queue.fail_waiting(key, str(error))
    except RedisError as error:  # the jobs are in all the same
        log.warning("redis_failed", path="/request", error=str(error))


async def _servable(gateway: Gateway, key: ModelKey, caller: Caller) -> HostedModel:
    """Raises UnknownModel, also for one that the caller may not use, or ModelFailed."""
    if not caller.reaches(key.repo_id):
        raise UnknownModel(str(key), caller.models or ())
    try:
        model = await gateway.state.models.find(key)
    except UnknownModel:
        if caller.models is None:
            raise
        raise UnknownModel(str(key), caller.models) from None  # the names of others are not for this key
    if model.state is ModelState.FAILED:
        raise ModelFailed(str(model.card.key), model.card.failure or "no reason is known")
    return model


def _job(envelope: Envelope, tenant: str, limits: Limits, payload_bytes: int) -> Job:
    return Job(
        id=uuid.uuid4().hex,
        tenant=tenant,
        model=envelope.model,
        compress=envelope.compress,
        env=envelope.env,
        limits=Limits.model_validate(limits.model_dump(include=set(Limits.model_fields))),
        session_id=envelope.session_id,
        payload_bytes=payload_bytes,
        submitted_at=time.time(),
    )


async def _accept(gateway: Gateway, job: Job, payload: bytes, limits: Admission, *, model_ready: bool) -> None:
    state = gateway.state
    await state.results.put_payload(job.id, payload)
    try:
        place = await state.queue.submit(
            job, waiting_jobs=limits.waiting_jobs, running_jobs=limits.running_jobs, model_ready=model_ready
        )
    except InterlaceError:
        await state.results.delete_payload(job.id)
        raise
    log.info("accepted", job=job.id, model=str(job.model), payload_bytes=job.payload_bytes, place=place)


def _note(gateway: Gateway, caller: Caller, job: Job, payload: bytes, request: Request) -> None:
    gateway.state.audit.write(
        "accepted",
        tenant=caller.tenant,
        key=caller.key_id,
        job=job.id,
        model=str(job.model),
        payload_bytes=job.payload_bytes,
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        address=request.client.host if request.client else None,
    )


@router.get("/response/{job_id}", responses=refusals(401, 404, 422, 429, 503))
async def poll(job_id: str, request: Request, caller: TheCaller, gateway: TheGateway) -> Update:
    """A job's last status; a completed job's `data` is a URL that was signed just now."""
    event = await gateway.state.events.last(job_id, caller.tenant)
    update = nnsight_wire.render(job_id, event)
    if not isinstance(event, Ended) or event.result is None:
        return update
    return update.model_copy(update={"data": await result_url(gateway, request, job_id)})


@router.get("/status", responses=refusals(503))
async def status(gateway: TheGateway) -> Overview:
    """The hosted models, one entry a replica."""
    return overview(await gateway.state.models.all(), gateway.config.limits.wall_seconds)


@router.get("/env", responses=refusals(503))
async def env(gateway: TheGateway) -> Environment:
    """The workers' Python and packages; no packages while no worker has said."""
    found = await gateway.state.models.environment()
    return Environment.model_validate(found or {"python_version": platform.python_version(), "packages": {}})


@router.get("/whoami", responses=refusals(401, 429, 503))
async def whoami(caller: TheCaller) -> Identity:
    return identity_of(caller)


@router.get("/ping")
async def ping() -> Literal["pong"]:
    return "pong"


@router.get("/connected", responses=refusals(503))
async def connected(gateway: TheGateway) -> Connected:
    """Whether jobs can be taken in."""
    await gateway.state.redis.ping()
    return Connected()


router.head("/connected", responses=refusals(503), operation_id="head_connected")(connected)
