"""`/v1/jobs`: a caller's own jobs, and for an admin those of all: list, look, follow, cancel, fetch."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from interlace.protocol import event as words
from interlace.protocol.errors import Forbidden, InterlaceError, NotCompleted
from interlace.protocol.event import Event, Saved
from interlace.protocol.job import JobState
from interlace.protocol.jobs import JobPage, JobView
from interlace_server.allow import SharedPath
from interlace_server.delivery import BYTES, deliver
from interlace_server.doors.auth import Caller, TheCaller
from interlace_server.errors import Responses, refusals
from interlace_server.gateway import Gateway, TheGateway
from interlace_state import log
from interlace_state.jobs import CURSOR, MOST
from interlace_state.tenants import TENANT

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=SharedPath)

_KEEP_ALIVE = 15.0  # seconds of silence
#: A stream ends after so many seconds, and its client comes back: what it may see is looked at again.
_LONGEST_STREAM = 3600.0
_EVENT_ID = r"^[0-9]{1,19}(-[0-9]{1,19})?$"
_EVENT = {
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string", "enum": ["state", "log", "progress", "saved", "ended"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_STREAM: Responses = {
    200: {
        "description": "Server-sent events; `data` is an event as JSON.",
        "content": {"text/event-stream": {"itemSchema": _EVENT}},
    }
}
_OCTETS = "application/octet-stream"
_VALUE: Responses = {
    200: {
        "description": "What torch.save wrote.",
        "content": {_OCTETS: {"schema": {"type": "string", "format": "binary"}}},
    }
}
_MOST_VALUES = 1 << 40
_GONE: Responses = {204: {"description": "The job had ended; now its record, events and result are gone."}}

_JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="A job's id: 32 hex digits.")]
_EventId = Annotated[str | None, Query(pattern=_EVENT_ID, description="Only events after the one with this id.")]


def _reach(caller: Caller) -> str | None:
    """Whose jobs a caller may see: its tenant's, or for an admin anybody's."""
    return None if caller.role == "admin" else caller.tenant


@router.get("", responses=refusals(401, 403, 422, 429, 503))
async def list_jobs(
    caller: TheCaller,
    gateway: TheGateway,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    model: Annotated[str | None, Query(max_length=256, description="Only jobs of this repo id or slug.")] = None,
    tenant: Annotated[
        str | None, Query(pattern=f"^{TENANT}$", description="For admins: only jobs of this tenant.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MOST, description="Most jobs of this page.")] = 50,
    cursor: Annotated[str | None, Query(pattern=CURSOR, description="`next` of the page before.")] = None,
) -> JobPage:
    """Jobs, the newest first. A page may be short, or empty, although another follows: `next` says so."""
    reach = _reach(caller)
    if tenant is not None and reach not in (None, tenant):
        raise Forbidden(f"Jobs of {tenant} are not yours to see: leave `tenant` out, or use an admin's key.")
    return await gateway.state.jobs.list(tenant or reach, state=state, model=model, before=cursor, limit=limit)


@router.get("/{job_id}", responses=refusals(401, 404, 422, 429, 503))
async def show_job(job_id: _JobId, caller: TheCaller, gateway: TheGateway) -> JobView:
    """One job; while it waits, `place` says where it stands."""
    return await gateway.state.jobs.show(job_id, _reach(caller))


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
    state = gateway.state
    job = await state.jobs.show(job_id, _reach(caller))
    by = "its owner" if caller.tenant == job.tenant else "an operator"
    if job.method is not None and await state.queue.stop(job_id, f"Cancelled by {by}: it ends with what it has."):
        _note(gateway, caller, "job cancelled", job)
        forget = False
    elif await state.queue.cancel(job_id, f"The job was cancelled by {by}."):
        await state.results.delete_payload(job_id)
        _note(gateway, caller, "job cancelled", job)
        forget = False
    if not forget:
        return await state.jobs.show(job_id, _reach(caller))
    await state.results.delete(job_id)
    await state.checkpoints.delete(job_id)
    await state.jobs.forget(job)  # after its bytes: whoever is interrupted here finds the job again, and repeats
    _note(gateway, caller, "job deleted", job)
    return Response(status_code=204)


def _note(gateway: Gateway, caller: Caller, action: str, job: JobView) -> None:
    with log.instead_of(OSError, "audit_failed"):
        gateway.state.audit.write(action, tenant=caller.tenant, key=caller.key_id, job=job.id, owner=job.tenant)


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
    gateway: TheGateway,
) -> Response:
    """A value that left before its job's end: bytes that torch.save wrote. It is not for other tenants."""
    await gateway.state.jobs.show(job_id, caller.tenant)
    headers = {"Cache-Control": "private, no-store"}
    inline = await gateway.state.events.value(job_id, number)
    if inline is not None:
        return Response(inline, headers=headers, media_type=_OCTETS)
    size, stream = await gateway.state.values.open(job_id, number)
    return StreamingResponse(stream(0, size), headers=headers | {"Content-Length": str(size)}, media_type=_OCTETS)


@router.get("/{job_id}/events", response_class=StreamingResponse, responses=_STREAM | refusals(401, 404, 422, 429, 503))
async def job_events(
    job_id: _JobId,
    caller: TheCaller,
    gateway: TheGateway,
    after: _EventId = None,
    last_event_id: Annotated[
        str | None,
        Header(pattern=_EVENT_ID, description="As `after`, which it goes before."),
    ] = None,
    follow: Annotated[bool, Query(description="Go on with what happens from now on.")] = True,
) -> StreamingResponse:
    """What happened to a job, then what happens, until its last event or for an hour: resume with `Last-Event-ID`.

    A comment comes when nothing has for 15 seconds.
    """
    await gateway.state.jobs.show(job_id, _reach(caller))
    newest, ended = await gateway.state.jobs.newest_event(job_id)
    after = min(last_event_id or after or "0", newest, key=_number)
    until = None if follow and not ended else newest
    stream = _stream(gateway, job_id, after, until)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _stream(gateway: Gateway, job_id: str, after: str, until: str | None) -> AsyncIterator[bytes]:
    """Events as bytes, after one id and up to another. Ends early, without a word, where its client should resume."""
    if until is not None and _number(after) >= _number(until):
        return
    clock = asyncio.get_running_loop().time
    end = clock() + _LONGEST_STREAM
    with gateway.drain.stream():
        closing = asyncio.create_task(gateway.drain.closing.wait(), name="events-closing")
        following = gateway.state.events.follow(job_id, after)
        upcoming: asyncio.Future[tuple[str, Event] | None] | None = None
        try:
            while clock() < end and not closing.done():
                upcoming = upcoming or asyncio.ensure_future(anext(following, None))
                await asyncio.wait((upcoming, closing), timeout=_KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED)
                if not upcoming.done():
                    yield b": still here\n\n"
                    continue
                found, upcoming = upcoming.result(), None
                if found is None:
                    return
                yield _sent(*found)
                if until is not None and _number(found[0]) >= _number(until):
                    return
        except (InterlaceError, RedisError) as error:
            log.warning("events_failed", job=job_id, error=str(error))
        finally:
            closing.cancel()
            if upcoming is not None:
                upcoming.cancel()


def _sent(event_id: str, event: Event) -> bytes:
    """An event in the form of server-sent events, without a value's bytes; JSON has no line ends of its own."""
    event = event.bare if isinstance(event, Saved) else event
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id.encode(), event.type.encode(), words.encode(event))


def _number(event_id: str) -> tuple[int, int]:
    """An event id, `MILLISECONDS-NUMBER`, as what it is ordered by."""
    moment, _, number = event_id.partition("-")
    return int(moment), int(number or 0)
