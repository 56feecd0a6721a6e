"""Stock nnsight's HTTP routes; its WebSocket is in `subscribe.py`."""

import asyncio
import hashlib
import json
import platform
import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Header, Request, Response, UploadFile
from pydantic import BaseModel
from redis.exceptions import RedisError

from interlace.protocol.errors import InterlaceError, ModelFailed, UnknownModel, Untrusted
from interlace.protocol.event import Ended, StateChanged
from interlace.protocol.job import Job, JobState, Limits
from interlace.protocol.model import ModelKey
from interlace_server import metrics, nnsight_wire
from interlace_server.deployments import Overview, overview
from interlace_server.doors.adapters import check_adapters
from interlace_server.doors.admission import check_payload
from interlace_server.doors.auth import Caller, Identity, TheCaller, identity_of, visible
from interlace_server.doors.observation import origin_of
from interlace_server.errors import Responses, refusals
from interlace_server.gateway import Gateway, TheGateway
from interlace_server.nnsight_wire import Envelope, Update
from interlace_server.routes.results import result_url
from interlace_state import log
from interlace_state.config import Admission
from interlace_state.models import HostedModel, ModelState
from interlace_state.queue import Submitted

router = APIRouter(tags=["nnsight"])

_VERSION_HEADERS: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "header", "required": True, "schema": {"type": "string", "pattern": pattern}}
        for name, pattern in (("nnsight-version", r"^\d+\.\d+\.\d+"), ("python-version", r"^\d+\.\d+"))
    ]
}
_ENVELOPE = {"contentMediaType": "application/json", "contentSchema": Envelope.model_json_schema()}
_IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of the client's own: visible ASCII characters, without spaces.",
    ),
]
_Stream = Annotated[
    Literal["saves"] | None,
    Header(
        alias="interlace-stream",
        description="`saves`: what a trace of a session or a step of a generation saves shall leave when it is over.",
    ),
]
_Batching = Annotated[
    Literal["on", "off"],
    Header(
        alias="interlace-batching",
        description="`off`: the job shares its forward with no other, and is the same bit for bit each time.",
    ),
]
_REPLAYED: Responses = {
    200: {
        "headers": {
            "Idempotent-Replayed": {
                "description": "`true` where the job is one that the same request had made before.",
                "schema": {"type": "string", "enum": ["true"]},
            }
        }
    }
}


class Connected(BaseModel):
    status: Literal["connected"] = "connected"


class Environment(BaseModel):
    """What the workers run; ``nnsight.compare()`` holds it against the client."""

    python_version: str
    packages: dict[str, str]


@router.post(
    "/request",
    responses=_REPLAYED | refusals(400, 401, 404, 408, 409, 413, 422, 429, 503),
    openapi_extra=_VERSION_HEADERS,
)
async def submit(
    data: Annotated[str, Form(description="The envelope: a JSON object.", json_schema_extra=_ENVELOPE)],
    blob: Annotated[UploadFile, File(description="The payload: a serialized trace.")],
    caller: TheCaller,
    request: Request,
    response: Response,
    gateway: TheGateway,
    idempotency_key: _IdempotencyKey = None,
    stream: _Stream = None,
    batching: _Batching = "on",
) -> Update:
    """Take a job in; it is durable when this answers.

    The same request under the same `Idempotency-Key` is the same job, for as long as that is kept.
    """
    envelope = Envelope.parse(data)
    model = await _servable(gateway, envelope.model, caller)
    await check_adapters(gateway, envelope.env, model.card, caller)
    limits = caller.limits
    payload = await blob.read()
    check_payload(payload, compress=envelope.compress, limits=limits)
    more = {"stream_saves": stream is not None} | origin_of(request)
    job = _job(envelope, caller.tenant, limits, len(payload)).model_copy(update=more)
    again = await asyncio.to_thread(_idempotency, idempotency_key, job, payload) if idempotency_key else None
    ready = model.state is ModelState.READY
    may_share = batching == "on" and job.model.shares_forwards and gateway.config.batches(caller.tenant)
    submitted = await _accept(gateway, job, payload, limits, again, model_ready=ready, batching=may_share)
    if submitted.replayed:
        response.headers["Idempotent-Replayed"] = "true"
        return nnsight_wire.received(submitted.job_id)
    with log.instead_of(OSError, "audit_failed"):  # the job is in
        await asyncio.to_thread(_note, gateway, caller, job, payload, request)  # a large payload takes a second to hash
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
    """Raises UnknownModel, also for one that the caller may not use, Untrusted or ModelFailed."""
    if not caller.reaches(key.repo_id):
        raise UnknownModel(str(key), caller.models or ())
    try:
        model = await gateway.state.models.find(key)
    except UnknownModel:
        if caller.models is None:
            raise
        raise UnknownModel(str(key), caller.models) from None  # the names of others are not for this key
    if model.card.trusted is not None and caller.tenant not in model.card.trusted:
        raise Untrusted(str(model.card.key), caller.tenant)
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


def _idempotency(key: str, job: Job, payload: bytes) -> tuple[str, str]:
    """Digests of a client's key, and of what makes two requests the same: all but the session that waits for it."""
    request = hashlib.sha256(f"{job.model.canonical}\n{json.dumps(job.env, sort_keys=True)}\n{job.compress}\n".encode())
    request.update(payload)
    return hashlib.sha256(key.encode()).hexdigest(), request.hexdigest()


async def _accept(
    gateway: Gateway,
    job: Job,
    payload: bytes,
    limits: Admission,
    idempotency: tuple[str, str] | None,
    *,
    model_ready: bool,
    batching: bool,
) -> Submitted:
    state = gateway.state
    await state.results.put_payload(job.id, payload)
    try:
        submitted = await state.queue.submit(
            job,
            waiting_jobs=limits.waiting_jobs,
            running_jobs=limits.running_jobs,
            kept_jobs=limits.kept_jobs,
            model_ready=model_ready,
            idempotency=idempotency,
            batching=batching,
        )
    except InterlaceError:
        await state.results.delete_payload(job.id)
        raise
    if submitted.replayed:
        await state.results.delete_payload(job.id)
        log.info("replayed", job=submitted.job_id, model=str(job.model))
        return submitted
    metrics.accepted(str(job.model), job.payload_bytes)
    log.info("accepted", job=job.id, model=str(job.model), payload_bytes=job.payload_bytes, place=submitted.place)
    return submitted


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
    if isinstance(event, StateChanged) and event.state is JobState.QUEUED and event.model_ready:
        place = await gateway.state.queue.place(job_id)
        return nnsight_wire.render(job_id, event) if place is None else nnsight_wire.waits(job_id, place)
    update = nnsight_wire.render(job_id, event)
    if not isinstance(event, Ended) or event.result is None:
        return update
    return update.model_copy(update={"data": await result_url(gateway, request, job_id)})


@router.get("/status", responses=refusals(503))
async def status(request: Request, gateway: TheGateway) -> Overview:
    """The hosted models, one entry a replica."""
    return overview(visible(await gateway.state.models.all(), request), gateway.config.limits.wall_seconds)


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
