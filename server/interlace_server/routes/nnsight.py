"""Stock nnsight's HTTP routes; its WebSocket is in `subscribe.py`."""

import platform
import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Header, Request, Response, UploadFile
from pydantic import BaseModel

from interlace.protocol.event import Ended, StateChanged
from interlace.protocol.job import Job, JobState, Limits
from interlace_server import nnsight_wire
from interlace_server.deployments import Overview, overview
from interlace_server.doors.adapters import check_adapters
from interlace_server.doors.admission import check_payload
from interlace_server.doors.auth import Identity, TheCaller, caller_of, identity_of, visible
from interlace_server.doors.observation import origin_of
from interlace_server.errors import refusals
from interlace_server.gateway import TheGateway, gateway_of
from interlace_server.intake import REPLAYED, IdempotencyKey, job_limits, servable, take_in
from interlace_server.nnsight_wire import Envelope, Update
from interlace_server.routes.results import result_url
from interlace_state.models import Recent
from interlace_state.queue import ModelChanged

router = APIRouter(tags=["nnsight"])

_VERSION_HEADERS: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "header", "required": True, "schema": {"type": "string", "pattern": pattern}}
        for name, pattern in (("nnsight-version", r"^\d+\.\d+\.\d+"), ("python-version", r"^\d+\.\d+"))
    ]
}
_ENVELOPE = {"contentMediaType": "application/json", "contentSchema": Envelope.model_json_schema()}
_Stream = Annotated[
    Literal["saves"] | None,
    Header(
        alias="interlace-stream",
        description="`saves`: what a trace of a session or a step of a generation saves shall leave when it is over.",
    ),
]
_Packing = Annotated[
    Literal["raw"] | None,
    Header(
        alias="interlace-packing",
        description="`raw`: a large result goes into its zstd frame as it is, for a link that is faster than zstd.",
    ),
]
_Batching = Annotated[
    Literal["on", "off"],
    Header(
        alias="interlace-batching",
        description="`off`: the job shares its forward with no other, and is the same bit for bit each time.",
    ),
]


class Connected(BaseModel):
    status: Literal["connected"] = "connected"


class Environment(BaseModel):
    """What the workers run; ``nnsight.compare()`` holds it against the client."""

    python_version: str
    packages: dict[str, str]


@router.post(
    "/request",
    responses=REPLAYED | refusals(400, 401, 404, 408, 409, 413, 422, 429, 503),
    openapi_extra=_VERSION_HEADERS,
)
async def submit(
    data: Annotated[str, Form(description="The envelope: a JSON object.", json_schema_extra=_ENVELOPE)],
    blob: Annotated[UploadFile, File(description="The payload: a serialized trace.")],
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    stream: _Stream = None,
    packing: _Packing = None,
    batching: _Batching = "on",
) -> Update:
    """Take a job in; it is durable when this answers.

    The same request under the same `Idempotency-Key` is the same job, for as long as that is kept.
    """
    caller, gateway = caller_of(request), gateway_of(request)
    envelope = Envelope.parse(data)
    payload = await blob.read()

    async def take(recent: Recent | None) -> str:
        model = await servable(gateway, envelope.model, caller, recent.model if recent else None)
        await check_adapters(gateway, envelope.env, model.card, caller)
        check_payload(payload, compress=envelope.compress, limits=caller.limits)
        more = {"stream_saves": stream is not None, "raw": packing is not None} | origin_of(request)
        job = _job(envelope, caller.tenant, job_limits(caller), len(payload)).model_copy(update=more)
        may_share = batching == "on" and job.model.shares_forwards and gateway.config.batches(caller.tenant)
        return await take_in(
            gateway,
            caller,
            job,
            payload,
            model,
            request,
            response,
            idempotency_key=idempotency_key,
            batching=may_share and not (envelope.env.get("edits") or envelope.env.get("artifacts")),
            alone=batching == "off",
            recent=recent,
        )

    try:
        return nnsight_wire.received(await take(gateway.state.models.recent(envelope.model)))
    except ModelChanged:
        return nnsight_wire.received(await take(None))


def _job(envelope: Envelope, tenant: str, limits: Limits, payload_bytes: int) -> Job:
    return Job(
        id=uuid.uuid4().hex,
        tenant=tenant,
        model=envelope.model,
        compress=envelope.compress,
        env=envelope.env,
        limits=limits,
        session_id=envelope.session_id,
        payload_bytes=payload_bytes,
        submitted_at=time.time(),
    )


@router.get("/response/{job_id}", responses=refusals(401, 404, 422, 429, 503))
async def poll(job_id: str, request: Request, caller: TheCaller, gateway: TheGateway) -> Update:
    """A job's last status; a completed job's `data` is a URL that was signed just now."""
    event = await gateway.state.events.last(job_id, caller.tenant)
    if isinstance(event, StateChanged) and event.state is JobState.QUEUED and event.model_ready:
        place = await gateway.state.queue.place(job_id)
        return nnsight_wire.render(job_id, event) if place is None else nnsight_wire.waits(job_id, place)
    if isinstance(event, StateChanged) and event.state is JobState.QUEUED and not event.model_ready:
        key = await gateway.state.jobs.model_of(job_id)
        if key is not None and (moment := await gateway.state.desired.moment(key)) is not None:
            return nnsight_wire.deploys(job_id, moment)
    update = nnsight_wire.render(job_id, event)
    if not isinstance(event, Ended) or event.result is None:
        return update
    return update.model_copy(update={"data": await result_url(gateway, request, job_id)})


@router.get("/status", responses=refusals(503))
async def status(request: Request, gateway: TheGateway) -> Overview:
    """The hosted models, one entry a replica."""
    records = {record.key.slug: record for record in await gateway.state.desired.all()}
    return overview(visible(await gateway.state.models.all(), request), gateway.config.limits.wall_seconds, records)


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
