"""`/`: what is hosted and how it stands, and the lines with which somebody begins."""

from dataclasses import dataclass
from typing import Annotated, Any

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
    return _shown(request, gateway, rows, model, _HIDDEN if caller.key_id else None)


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
    rows = await rows_of(gateway, caller)
    secret = await gateway.state.visits.secret(request.scope["state"]["visit"]) if caller.key_id else None
    return _shown(request, gateway, rows, model, secret)


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


def _shown(request: Request, gateway: Gateway, rows: list[Row], model: str, key: str | None) -> Response:
    """The page, or for htmx the lines alone, with a key in them or what stands for one."""
    chosen = _chosen(rows, model)
    snippet = ""
    if chosen is not None:
        view = chosen.view
        snippet = Snippet(gateway.public_url(request), view.model, view.task, view.revision, key).text
    template = "_snippet.html" if request.headers.get("hx-request") and chosen else "home.html"
    values: dict[str, Any] = {"rows": rows, "seen": digest(rows), "chosen": chosen, "snippet": snippet}
    return page(request, template, is_hidden=key == _HIDDEN, **values)
