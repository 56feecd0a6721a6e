"""`/v1/methods`: which methods are installed and what they take; `POST /v1/jobs` runs one."""

import time
import uuid
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from interlace.methods import catalogue, find
from interlace.methods.base import Estimate
from interlace.methods.views import MethodList, MethodView, summary, view
from interlace.protocol.ids import METHOD
from interlace.protocol.job import Job, JobKind
from interlace.protocol.jobs import JobView
from interlace.protocol.method import MethodRequest
from interlace_server.allow import SharedPath
from interlace_server.doors.auth import TheCaller
from interlace_server.doors.observation import origin_of
from interlace_server.errors import refusals
from interlace_server.gateway import TheGateway
from interlace_server.intake import REPLAYED, IdempotencyKey, job_limits, take_in
from interlace_server.method_calls import estimated, model_named, prepared, whole

router = APIRouter(prefix="/v1", tags=["methods"], route_class=SharedPath)

_Name = Annotated[
    str,
    Path(
        max_length=128,
        pattern=f"^{METHOD}$",
        description="A method: `NAME@VERSION`, or a name for its newest version.",
    ),
]


@router.get("/methods", responses=refusals(401, 422, 429, 503))
async def list_methods(caller: TheCaller) -> MethodList:
    """The installed methods, by name."""
    return MethodList(methods=[summary(spec) for spec in catalogue().values()])


@router.get("/methods/{name}", responses=refusals(401, 404, 422, 429, 503))
async def show_method(name: _Name, caller: TheCaller) -> MethodView:
    """One method: what it takes and gives, as JSON schemas."""
    return view(find(name))


@router.post("/jobs", responses=REPLAYED | refusals(400, 401, 403, 404, 408, 409, 413, 422, 429, 503))
async def run_method(
    asked: MethodRequest,
    caller: TheCaller,
    request: Request,
    response: Response,
    gateway: TheGateway,
    idempotency_key: IdempotencyKey = None,
) -> JobView | Estimate:
    """Take a method's job in; it is durable when this answers, with the job. With `dry_run` the answer is its cost.

    The same request under the same `Idempotency-Key` is the same job, for as long as that is kept.
    """
    asked = await whole(gateway, asked, caller)
    model = await model_named(gateway, asked.model, caller)
    call, payload, params = await prepared(gateway, asked, model.card, caller)
    if asked.dry_run:
        return await estimated(gateway, find(call.ref), params, model.card, caller)
    job = Job(
        id=uuid.uuid4().hex,
        tenant=caller.tenant,
        model=model.card.key,
        kind=JobKind.METHOD,
        method=call,
        compress=False,
        limits=job_limits(caller),
        payload_bytes=len(payload),
        submitted_at=time.time(),
    ).model_copy(update=origin_of(request))
    job_id = await take_in(
        gateway, caller, job, payload, model, request, response, idempotency_key=idempotency_key, batching=False
    )
    return await gateway.state.jobs.show(job_id, caller.tenant)
