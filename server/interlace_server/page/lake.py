"""`/page/lake`: look for models and for what jobs have made; cards, lineage, comparison, citation."""

import shlex
from typing import Annotated

from fastapi import APIRouter, Form, Path, Query, Request
from starlette.responses import RedirectResponse, Response

from interlace.protocol.ids import ARTIFACT_ID, NAME
from interlace.protocol.jobs import JobView
from interlace.protocol.lake import Card, EntryChange, LakePage, Visibility
from interlace.protocol.method import MethodRequest
from interlace_server.doors.auth import TheCaller
from interlace_server.gateway import TheGateway
from interlace_server.page import lineage
from interlace_server.page.frame import Nav, PageRoute, done, page, saying
from interlace_server.routes import lake as routes
from interlace_server.routes.methods import run_method
from interlace_server.viewer import viewer_of

NAV = Nav("/page/lake", "Lake", 30)
router = APIRouter(prefix="/page/lake", route_class=PageRoute, include_in_schema=False)
saying(
    lake_changed="It is changed.",
    lake_tagged="The tag points here now.",
    lake_untagged="The tag is taken off.",
    lake_deleted="It is deleted; a tombstone stays in the lineage of what came of it.",
)

_Id = Annotated[str, Path(pattern=f"^{ARTIFACT_ID}$")]
_Asked = Annotated[str, Query(max_length=64)]
_PER_PAGE = 20
_DECLARED = ("description", "license", "intended_use")
_Text = Annotated[str, Form(max_length=4000)]


@router.get("")
async def search(
    request: Request,
    caller: TheCaller,
    gateway: TheGateway,
    q: Annotated[str, Query(max_length=1000)] = "",
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Response:
    """What a query finds, or everything, the newest first."""
    viewer = await viewer_of(gateway.state, caller)
    found = await gateway.state.lake.search(viewer, q, limit=_PER_PAGE, offset=offset)
    return page(request, "lake.html", q=q, found=found, facets=_facets(found, q), step=_PER_PAGE)


@router.get("/compare")
async def compare(request: Request, caller: TheCaller, gateway: TheGateway, a: _Asked = "", b: _Asked = "") -> Response:
    """Two entries side by side, each named by its id, or as `lake://` has it."""
    viewer = await viewer_of(gateway.state, caller)
    if not a or not b:
        return page(request, "compare.html", a=a, b=b, found=None)
    ids = [(await gateway.state.lake.resolve(viewer, one)).id for one in (a, b)]
    found = await gateway.state.lake.compare(viewer, *ids)
    return page(request, "compare.html", a=a, b=b, found=found)


@router.post("/compare")
async def measure(
    request: Request,
    caller: TheCaller,
    gateway: TheGateway,
    a: Annotated[str, Form(pattern=f"^{ARTIFACT_ID}$")],
    b: Annotated[str, Form(pattern=f"^{ARTIFACT_ID}$")],
) -> Response:
    """Run the job that compares two entries by weights and behaviour."""
    found = await gateway.state.lake.compare(await viewer_of(gateway.state, caller), a, b)
    asked = MethodRequest.model_validate(found.request or {})
    view = await run_method(asked, caller, request, Response(), gateway)
    assert isinstance(view, JobView)
    return RedirectResponse(f"/page/jobs/{view.id}", 303)


@router.get("/{entry_id}")
async def card(
    entry_id: _Id,
    request: Request,
    caller: TheCaller,
    gateway: TheGateway,
    depth: Annotated[int, Query(ge=1, le=16)] = 3,
) -> Response:
    """All that is known of an entry."""
    viewer = await viewer_of(gateway.state, caller)
    lake = gateway.state.lake
    found = await lake.card(viewer, entry_id)
    graph = await lake.lineage(viewer, entry_id, depth)
    citation = await lake.cite(viewer, entry_id, gateway.public_url(request))
    says = f"Lineage of {found.entry.name}: {len(graph.nodes)} entries, {len(graph.edges)} links"
    is_own = found.entry.kind != "model" and (found.entry.owner == caller.tenant or caller.role == "admin")
    return page(
        request,
        "card.html",
        card=found,
        graph=graph,
        labels={node.id: node.label or f"({node.state})" for node in graph.nodes},
        drawing=lineage.drawn(graph, says),
        depth=depth,
        citation=citation,
        is_own=is_own,
        declared=_declared(found),
    )


@router.post("/{entry_id}")
async def change(
    entry_id: _Id,
    caller: TheCaller,
    gateway: TheGateway,
    visibility: Annotated[Visibility, Form()],
    description: _Text = "",
    license: _Text = "",
    intended_use: _Text = "",
) -> Response:
    """Who sees it, and what its owner says of it; an empty field is taken back."""
    said = {"description": description, "license": license, "intended_use": intended_use}
    declared = {name: text.strip() or None for name, text in said.items()}
    await routes.change(entry_id, EntryChange(visibility=visibility, declared=declared), caller, gateway)
    return done(f"/page/lake/{entry_id}", "lake_changed")


@router.post("/{entry_id}/tags")
async def put_tag(
    entry_id: _Id, caller: TheCaller, gateway: TheGateway, tag: Annotated[str, Form(pattern=f"^{NAME}$")]
) -> Response:
    await gateway.state.lake.tag(await viewer_of(gateway.state, caller), entry_id, tag)
    return done(f"/page/lake/{entry_id}", "lake_tagged")


@router.post("/{entry_id}/untag")
async def take_tag(
    entry_id: _Id, caller: TheCaller, gateway: TheGateway, tag: Annotated[str, Form(pattern=f"^{NAME}$")]
) -> Response:
    await gateway.state.lake.untag(await viewer_of(gateway.state, caller), entry_id, tag)
    return done(f"/page/lake/{entry_id}", "lake_untagged")


@router.post("/{entry_id}/delete")
async def delete(entry_id: _Id, caller: TheCaller, gateway: TheGateway) -> Response:
    await routes.delete(entry_id, caller, gateway)
    return done("/page/lake", "lake_deleted")


def _declared(card: Card) -> dict[str, str]:
    said = {one.field: str(one.value) for one in card.statements if one.source == "declared"}
    return {name: said.get(name, "") for name in _DECLARED}


def _facets(found: LakePage, q: str) -> list[tuple[str, list[tuple[str, int, str, bool]]]]:
    """Field -> (value, how many, the query with it or, where it is asked for, without it, whether it is)."""
    shown = []
    for field, counts in found.facets.items():
        asked = found.filters.get(field, ())
        values = []
        for value, count in list(counts.items())[:8]:
            term = f"{field}:{value}"
            is_on = value in asked
            values.append((value, count, _without(q, term) if is_on else f"{q} {shlex.quote(term)}".strip(), is_on))
        if len(values) > 1 or any(one[3] for one in values):
            shown.append((field, values))
    return shown


def _without(q: str, term: str) -> str:
    try:
        parts = shlex.split(q)
    except ValueError:
        parts = q.split()
    return " ".join(shlex.quote(part) if " " in part else part for part in parts if part != term)
