"""`/page/jobs`: one's own jobs, for an admin those of all; one job, with what it says, gave and cost."""

import re
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import RedirectResponse, Response

from interlace.protocol.errors import UnknownJob
from interlace.protocol.ids import JOB_ID
from interlace.protocol.job import JobState
from interlace.protocol.jobs import JobView
from interlace_server import job_actions
from interlace_server.doors.auth import Caller, TheCaller
from interlace_server.gateway import Gateway, TheGateway
from interlace_server.page.frame import Nav, PageRoute, digest, done, part, saying
from interlace_server.page.pictures import Pictures, given
from interlace_server.routes.jobs import job_result as fetch_result
from interlace_server.routes.jobs import list_jobs, picture, show_job

NAV = Nav("/page/jobs", "Jobs", 20)
router = APIRouter(prefix="/page/jobs", route_class=PageRoute, include_in_schema=False)

_PAGE = 50  # jobs
_LINES = 500  # of a job's log
_JobId = Annotated[str, Path(pattern=f"^{JOB_ID}$")]
_Word = Annotated[str, Query(max_length=256)]
_pictures = Pictures()
saying(
    cancelled="The job was told to end.",
    had_ended="The job had ended already.",
    forgotten="The job is forgotten: its result, its log and its record are gone.",
)


@router.get("")
async def jobs(
    request: Request,
    caller: TheCaller,
    gateway: TheGateway,
    state: _Word = "",
    model: _Word = "",
    tenant: _Word = "",
    cursor: _Word = "",
    id: _Word = "",
) -> Response:
    """The list, the newest first; `?id=` leads to one."""
    if id.strip():
        return RedirectResponse(f"/page/jobs/{_checked(id.strip())}", 303)
    found = await list_jobs(
        caller,
        gateway,
        state=JobState(state) if state in list(JobState) else None,
        model=model.strip() or None,
        tenant=tenant.strip() or None,
        limit=_PAGE,
        cursor=cursor or None,
    )
    asked = {"state": state, "model": model, "tenant": tenant}
    template = "_jobs.html" if request.headers.get("hx-request") else "jobs.html"
    return part(request, template, digest(found), found=found, asked=asked, states=list(JobState), cursor=cursor)


@router.get("/{job_id}")
async def job(request: Request, job_id: _JobId, caller: TheCaller, gateway: TheGateway) -> Response:
    return await _job(request, "job.html", job_id, caller, gateway)


@router.get("/{job_id}/live")
async def job_live(request: Request, job_id: _JobId, caller: TheCaller, gateway: TheGateway) -> Response:
    """The part that changes while the job runs."""
    return await _job(request, "_job.html", job_id, caller, gateway)


@router.get("/{job_id}/picture.png")
async def job_picture(request: Request, job_id: _JobId, caller: TheCaller, gateway: TheGateway) -> Response:
    """What the method draws of its result; as a result, it is for the job's own tenant."""
    view = await gateway.state.jobs.show(job_id, caller.tenant)
    png = await _pictures.of_job(gateway, view)
    return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/{job_id}/shown.png")
async def job_shown(job_id: _JobId, caller: TheCaller, gateway: TheGateway) -> Response:
    """What a method has shown last while it runs; for the job's own tenant."""
    await gateway.state.jobs.show(job_id, caller.tenant)
    found = await gateway.state.jobs.picture(job_id)
    return await picture(gateway, job_id, 0 if found is None else found.number)


@router.get("/{job_id}/result")
async def job_result(request: Request, job_id: _JobId, caller: TheCaller, gateway: TheGateway) -> Response:
    """The result's bytes, as a file."""
    response = await fetch_result(job_id, caller, request, gateway)
    view = await show_job(job_id, caller, gateway)
    name = f"{job_id}.{'json' if view.method else 'bin'}"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


@router.post("/{job_id}/cancel")
async def cancel_job(job_id: _JobId, caller: TheCaller, gateway: TheGateway) -> Response:
    view = await job_actions.cancel(gateway, caller, job_id)
    return done(f"/page/jobs/{job_id}", "had_ended" if view is None else "cancelled")


@router.post("/{job_id}/forget")
async def forget_job(job_id: _JobId, caller: TheCaller, gateway: TheGateway) -> Response:
    """Of a job that has ended only: one that has begun again meanwhile is not stopped by it."""
    if not (await show_job(job_id, caller, gateway)).state.ended:
        return done(f"/page/jobs/{job_id}")
    await job_actions.forget(gateway, caller, job_id)
    return done("/page/jobs", "forgotten")


async def _job(request: Request, template: str, job_id: str, caller: Caller, gateway: Gateway) -> Response:
    view = await show_job(job_id, caller, gateway)
    own = view.tenant == caller.tenant
    lines, more = await gateway.state.events.lines(job_id, _LINES)
    result = await given(gateway, view) if own and view.state.ended else None
    shown = await gateway.state.jobs.picture(job_id) if own and view.state is not JobState.COMPLETED else None
    return part(
        request,
        template,
        digest(view, lines, shown),
        job=view,
        lines=lines,
        more=more,
        given=result,
        own=own,
        share=_share(view),
        shown=shown,
    )


def _share(view: JobView) -> float | None:
    """How much of it is done, of 1, where it says so."""
    if view.progress is None or not view.progress.of:
        return None
    return min(1.0, view.progress.step / view.progress.of)


def _checked(job_id: str) -> str:
    if not re.fullmatch(JOB_ID, job_id):
        raise UnknownJob(f"{job_id[:80]!r} is no job's id: 32 hex digits.")
    return job_id
