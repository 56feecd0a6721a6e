"""`/`: what is hosted and how it stands, and the lines with which somebody begins."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from interlace.protocol.hosting import ModelView, Phase
from interlace_server.doors.auth import Caller, TheCaller
from interlace_server.gateway import Gateway, TheGateway
from interlace_server.page.frame import Nav, PageRoute, digest, page, part
from interlace_server.page.snippet import Snippet
from interlace_server.views import model_view
from interlace_state.models import HostedModel

NAV = Nav("/", "Home", 0)
router = APIRouter(route_class=PageRoute, include_in_schema=False)

_HIDDEN = "il-" + "•" * 8
_Name = Annotated[str, Query(max_length=256)]
_UP = (Phase.READY, Phase.IDLE)


@dataclass(frozen=True)
class Row:
    """A hosted model, and what waits for it."""

    view: ModelView
    #: Jobs that workers hold, and those that wait for one.
    running: int
    waiting: int
    #: Seconds until a job that comes now starts, as far as one can guess; None: one cannot.
    wait: float | None


@router.get("/")
async def home(request: Request, caller: TheCaller, gateway: TheGateway, model: _Name = "") -> Response:
    rows = await rows_of(gateway, caller)
    chosen = _chosen(rows, model)
    snippet = _snippet(gateway, request, chosen, _HIDDEN if caller.key_id else None)
    is_hidden = caller.key_id is not None
    return page(request, "home.html", rows=rows, seen=digest(rows), chosen=chosen, snippet=snippet, is_hidden=is_hidden)


@router.get("/page/models")
async def models(request: Request, caller: TheCaller, gateway: TheGateway) -> Response:
    """The table alone, which follows what happens."""
    rows = await rows_of(gateway, caller)
    return part(request, "_models.html", digest(rows), rows=rows)


@router.post("/page/snippet")
async def snippet_with_key(
    request: Request, caller: TheCaller, gateway: TheGateway, model: Annotated[str, Form(max_length=256)] = ""
) -> Response:
    """The lines with the reader's own key in them; nobody else has what the key is encrypted with."""
    chosen = _chosen(await rows_of(gateway, caller), model)
    secret = await gateway.state.visits.secret(request.scope["state"]["visit"]) if caller.key_id else None
    snippet = _snippet(gateway, request, chosen, secret)
    return page(request, "_snippet.html", chosen=chosen, snippet=snippet, is_hidden=False)


async def rows_of(gateway: Gateway, caller: Caller) -> list[Row]:
    """The hosted models that the caller may use, by name."""
    found = [one for one in await gateway.state.models.all() if caller.reaches(one.card.key.repo_id)]
    rows = [await row_of(gateway, one) for one in found]
    return sorted(rows, key=lambda row: (row.view.model, row.view.slug))


async def row_of(gateway: Gateway, hosted: HostedModel) -> Row:
    view = await model_view(gateway.state, hosted)
    queue, key = gateway.state.queue, hosted.card.key
    running = min(view.jobs, await queue.running(key))
    waiting = view.jobs - running
    usual = await queue.usual(key)
    wait: float | None = None
    if view.phase in _UP and not view.paused:
        wait = 0.0 if not view.jobs else None if usual is None else usual * (waiting + 1) / max(1, running)
    return Row(view, running, waiting, wait)


def _chosen(rows: list[Row], name: str) -> Row | None:
    """The model that the lines are for: the one that is asked for, else the first that is up."""
    named = [row for row in rows if name in (row.view.slug, row.view.model)]
    up = [row for row in rows if row.view.phase in _UP]
    return next(iter([*named, *up, *rows]), None)


def _snippet(gateway: Gateway, request: Request, chosen: Row | None, key: str | None) -> str:
    if chosen is None:
        return ""
    view = chosen.view
    return Snippet(gateway.public_url(request), view.model, view.task, view.revision, key).text
