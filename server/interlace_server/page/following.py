"""Events for pages that are open, which a browser follows with the visit's cookie: of one job, of the list of jobs."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from interlace.protocol import event as words
from interlace.protocol.errors import TooMany
from interlace.protocol.event import Ended, Progress
from interlace.protocol.ids import EVENT_ID, JOB_ID, NAME
from interlace_server import sse
from interlace_server.doors.auth import TheCaller
from interlace_server.gateway import Gateway, TheGateway
from interlace_server.page.frame import PageRoute
from interlace_server.routes.jobs import show_job, whose
from interlace_state.life import order

router = APIRouter(prefix="/page/jobs", route_class=PageRoute, include_in_schema=False)

#: Seconds of a stream. Then the browser comes back, and whether its visit still holds is looked at again.
_AT_A_TIME = 60.0
#: Seconds between two words that a list has changed, however many of its jobs have.
_APART = 2.0
_NOTHING = b"{}"


class _Lists:
    """How many lists are followed, which hold a connection to Redis each."""

    open = 0


@router.get("/events")
async def list_events(
    request: Request,
    caller: TheCaller,
    gateway: TheGateway,
    tenant: Annotated[str | None, Query(pattern=f"^{NAME}$")] = None,
) -> Response:
    """`changed` when the list is no more what it was; the first says that changes are told from now on.

    Raises TooMany where so many lists are followed; a page then asks by itself.
    """
    most = gateway.config.page.followed_lists
    if _Lists.open >= most:
        raise TooMany("Lists of jobs that pages follow", most, "at a time", "page.followed_lists", retry_after=60)
    stream = sse.stream(gateway, _changes(gateway, whose(caller, tenant)), "list of jobs", _AT_A_TIME)
    return StreamingResponse(stream, media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)


async def _changes(gateway: Gateway, tenant: str | None) -> AsyncIterator[bytes]:
    _Lists.open += 1
    try:
        async with aclosing(gateway.state.events.changes(tenant, _APART)) as changes:
            async for _ in changes:
                yield sse.sent("0", "changed", _NOTHING)
    finally:
        _Lists.open -= 1


@router.get("/{job_id}/events")
async def job_events(
    request: Request,
    job_id: Annotated[str, Path(pattern=f"^{JOB_ID}$")],
    caller: TheCaller,
    gateway: TheGateway,
    after: Annotated[str | None, Query(pattern=f"^{EVENT_ID}$")] = None,
    last_event_id: Annotated[str | None, Header(pattern=f"^{EVENT_ID}$")] = None,
) -> Response:
    """`progress` with how far it is, from its first word on; `changed` for whatever else happens from now on; `ended`.

    204, after which no browser asks again, for a job that has told all.
    """
    await show_job(job_id, caller, gateway)
    newest, ended = await gateway.state.jobs.newest_event(job_id)
    after = min(last_event_id or after or "0", newest, key=order)
    if ended and order(after) >= order(newest):
        return Response(status_code=204)
    stream = sse.stream(gateway, _told(gateway, job_id, after, newest), job_id, _AT_A_TIME)
    return StreamingResponse(stream, media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)


async def _told(gateway: Gateway, job_id: str, after: str, newest: str) -> AsyncIterator[bytes]:
    async for event_id, event in gateway.state.events.follow(job_id, after):
        if isinstance(event, Progress):
            yield sse.sent(event_id, "progress", words.encode(event))
        elif isinstance(event, Ended):
            yield sse.sent(event_id, "ended", _NOTHING)
        elif order(event_id) > order(newest):  # the page that asks was drawn with all that was before
            yield sse.sent(event_id, "changed", _NOTHING)
