"""`/page/jobs/ID/events`: a job's events for its page, which a browser follows with the visit's cookie."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request
from starlette.responses import Response, StreamingResponse

from interlace.protocol import event as words
from interlace.protocol.event import Ended, Progress
from interlace_server import sse
from interlace_server.doors.auth import TheCaller
from interlace_server.gateway import Gateway, TheGateway
from interlace_server.page.frame import PageRoute
from interlace_server.routes.jobs import show_job
from interlace_state.life import order

router = APIRouter(prefix="/page/jobs", route_class=PageRoute, include_in_schema=False)

#: Seconds of a stream. Then the browser comes back, and whether its visit still holds is looked at again.
_AT_A_TIME = 60.0
_NOTHING = b"{}"


@router.get("/{job_id}/events")
async def job_events(
    request: Request,
    job_id: Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")],
    caller: TheCaller,
    gateway: TheGateway,
    last_event_id: Annotated[str | None, Header(pattern=sse.EVENT_ID)] = None,
) -> Response:
    """`progress` with how far it is, from its first word on; `changed` for whatever else happens from now on; `ended`.

    204, after which no browser asks again, for a job that has told all.
    """
    await show_job(job_id, caller, gateway)
    newest, ended = await gateway.state.jobs.newest_event(job_id)
    after = min(last_event_id or "0", newest, key=order)
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
