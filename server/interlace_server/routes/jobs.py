"""`/v1/jobs`: a caller's own jobs, and for an admin those of all: list, look, follow, cancel, fetch."""

import hashlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from interlace.protocol import event as words
from interlace.protocol.errors import Forbidden, NotCompleted, UnknownPicture, UnknownValue
from interlace.protocol.event import Picture, Saved
from interlace.protocol.ids import CURSOR, EVENT_ID, JOB_ID, NAME
from interlace.protocol.job import JobState
from interlace.protocol.jobs import JobPage, JobView
from interlace.protocol.picture import check_picture
from interlace_server import job_actions, sse
from interlace_server.allow import SharedPath
from interlace_server.delivery import BYTES, deliver, deliver_bytes, deliver_part, described
from interlace_server.doors.auth import Caller, TheCaller
from interlace_server.errors import Responses, refusals
from interlace_server.gateway import Gateway, TheGateway
from interlace_server.job_actions import reach
from interlace_state.jobs import MOST
from interlace_state.life import order

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=SharedPath)

_EVENTS = ("state", "log", "progress", "picture", "saved", "ended")
_STREAM: Responses = {
    200: {
        "description": "Server-sent events; `data` is an event as JSON.",
        "content": {sse.MEDIA_TYPE: {"itemSchema": sse.schema(*_EVENTS)}},
    }
}
_PNG = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
_PICTURE: Responses = {200: {"description": "The PNG.", "content": _PNG}}
#: A job that runs again may show another under a number.
_NOT_KEPT = {"Cache-Control": "private, no-store"}
_VALUE = described("A value is what torch.save wrote.")
_MOST_VALUES = 1 << 40
_GONE: Responses = {204: {"description": "The job had ended; now its record, events and result are gone."}}

_JobId = Annotated[str, Path(pattern=f"^{JOB_ID}$", description="A job's id: 32 hex digits.")]
_EventId = Annotated[str | None, Query(pattern=f"^{EVENT_ID}$", description="Only events after the one with this id.")]


@router.get("", responses=refusals(401, 403, 422, 429, 503))
async def list_jobs(
    caller: TheCaller,
    gateway: TheGateway,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    model: Annotated[str | None, Query(max_length=256, description="Only jobs of this repo id or slug.")] = None,
    tenant: Annotated[
        str | None, Query(pattern=f"^{NAME}$", description="For admins: only jobs of this tenant.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MOST, description="Most jobs of this page.")] = 50,
    cursor: Annotated[str | None, Query(pattern=f"^{CURSOR}$", description="`next` of the page before.")] = None,
) -> JobPage:
    """Jobs, the newest first. A page may be short, or empty, although another follows: `next` says so."""
    return await gateway.state.jobs.list(whose(caller, tenant), state=state, model=model, before=cursor, limit=limit)


def whose(caller: Caller, tenant: str | None) -> str | None:
    """The tenant whose jobs a caller lists, None for all. Raises Forbidden where they are not the caller's to see."""
    own = reach(caller)
    if tenant is not None and own not in (None, tenant):
        raise Forbidden(f"Jobs of {tenant} are not yours to see: leave `tenant` out, or use an admin's key.")
    return tenant or own


@router.get("/{job_id}", responses=refusals(401, 404, 422, 429, 503))
async def show_job(job_id: _JobId, caller: TheCaller, gateway: TheGateway) -> JobView:
    """One job; while it waits, `place` says where it stands."""
    return await gateway.state.jobs.show(job_id, reach(caller))


@router.delete("/{job_id}", response_model=JobView, responses=_GONE | refusals(401, 404, 422, 429, 503))
async def delete_job(
    job_id: _JobId,
    caller: TheCaller,
    gateway: TheGateway,
    forget: Annotated[bool, Query(description="If it has ended, remove what is kept of it.")] = True,
) -> Response | JobView:
    """Cancel a job that waits or runs: its last event says so, and it is shown.

    A method that runs is first asked to end with what it has, which is then the cancelled job's result; ask again to
    stop it at once. Forget a job that has ended, at once: its result, payload, events and record go, and its id is
    unknown from then on.
    """
    view = await job_actions.cancel(gateway, caller, job_id)
    if view is not None:
        return view
    if not forget:
        return await gateway.state.jobs.show(job_id, reach(caller))
    await job_actions.forget(gateway, caller, job_id)
    return Response(status_code=204)


@router.get(
    "/{job_id}/result", response_class=StreamingResponse, responses=BYTES | refusals(401, 404, 409, 422, 429, 503)
)
async def job_result(job_id: _JobId, caller: TheCaller, request: Request, gateway: TheGateway) -> Response:
    """Stream the result of a job of one's own; it is not for other tenants, admins included.

    Completed jobs have one, and of methods those that were cancelled and ended with what they had.

    `Range` fetches the rest of one that broke off.
    """
    job = await gateway.state.jobs.show(job_id, caller.tenant)
    if job.result_size is None:
        raise NotCompleted(f"Job {job_id} is {job.state}: only a completed job has a result. {job.text}".rstrip())
    return await deliver(gateway, request, job_id)


@router.get(
    "/{job_id}/values/{number}", response_class=StreamingResponse, responses=_VALUE | refusals(401, 404, 422, 429, 503)
)
async def job_value(
    job_id: _JobId,
    number: Annotated[int, Path(ge=1, le=_MOST_VALUES, description="As the event `saved` has it.")],
    caller: TheCaller,
    request: Request,
    gateway: TheGateway,
) -> Response:
    """A value that left before its job's end: bytes that torch.save wrote. It is not for other tenants.

    `Range` fetches the rest of one that broke off; with `If-Range` only if the job has not run again meanwhile.
    """
    state = gateway.state
    await state.jobs.show(job_id, caller.tenant)
    inline = await state.events.value(job_id, number)
    if inline is not None:
        tag = hashlib.sha256(inline).hexdigest()[:32]
        return deliver_bytes(request, inline, tag=tag, what="value")
    tag = await state.values.tag(job_id, number)
    size, stream = await state.values.open(job_id, number)
    return deliver_part(request, size, stream, tag=tag, what="value")


@router.get(
    "/{job_id}/pictures/{number}", response_class=Response, responses=_PICTURE | refusals(401, 404, 422, 429, 503)
)
async def job_picture(
    job_id: _JobId,
    number: Annotated[int, Path(ge=1, le=_MOST_VALUES, description="As the event `picture` has it.")],
    caller: TheCaller,
    gateway: TheGateway,
) -> Response:
    """A picture that a job of one's own has shown while it ran: a PNG. It is not for other tenants, admins included."""
    await gateway.state.jobs.show(job_id, caller.tenant)
    return await picture(gateway, job_id, number)


@router.get("/{job_id}/events", response_class=StreamingResponse, responses=_STREAM | refusals(401, 404, 422, 429, 503))
async def job_events(
    job_id: _JobId,
    caller: TheCaller,
    gateway: TheGateway,
    after: _EventId = None,
    last_event_id: Annotated[
        str | None,
        Header(pattern=f"^{EVENT_ID}$", description="As `after`, which it goes before."),
    ] = None,
    follow: Annotated[bool, Query(description="Go on with what happens from now on.")] = True,
) -> StreamingResponse:
    """What happened to a job, then what happens, until its last event or for an hour: resume with `Last-Event-ID`.

    A comment comes when nothing has for 15 seconds.
    """
    await gateway.state.jobs.show(job_id, reach(caller))
    newest, ended = await gateway.state.jobs.newest_event(job_id)
    after = min(last_event_id or after or "0", newest, key=order)
    until = None if follow and not ended else newest
    stream = sse.stream(gateway, _events(gateway, job_id, after, until), job_id)
    return StreamingResponse(stream, media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)


async def _events(gateway: Gateway, job_id: str, after: str, until: str | None) -> AsyncIterator[bytes]:
    """Events as bytes, after one id and up to another; the bytes of values and pictures are not among them."""
    if until is not None and order(after) >= order(until):
        return
    async for event_id, event in gateway.state.events.follow(job_id, after):
        event = event.bare if isinstance(event, (Saved, Picture)) else event
        yield sse.sent(event_id, event.type, words.encode(event))
        if until is not None and order(event_id) >= order(until):
            return


async def picture(gateway: Gateway, job_id: str, number: int) -> Response:
    """A picture that a job has shown. Raises UnknownPicture."""
    try:
        png = await gateway.state.values.read(job_id, number)
        check_picture(png)
    except (UnknownValue, ValueError):
        raise UnknownPicture(job_id, number) from None
    return Response(png, media_type="image/png", headers=_NOT_KEPT)
