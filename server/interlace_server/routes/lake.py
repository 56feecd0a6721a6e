"""`/v1/lake`: everything that is hosted or that jobs have made: search, cards, lineage, versions, tags, citations."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from interlace.protocol.ids import ARTIFACT_ID, NAME
from interlace.protocol.lake import (
    Card,
    Citation,
    Comparison,
    Entry,
    EntryChange,
    LakePage,
    LineageGraph,
    Tag,
)
from interlace_server.allow import SharedPath
from interlace_server.changes import note
from interlace_server.doors.auth import TheCaller
from interlace_server.errors import Responses, refusals
from interlace_server.gateway import TheGateway
from interlace_server.viewer import viewer_of

router = APIRouter(prefix="/v1/lake", tags=["lake"], route_class=SharedPath)

_GONE: Responses = {204: {"description": "It is gone; a tombstone stays in the lineage of what came of it."}}
_Id = Annotated[
    str, Path(pattern=f"^{ARTIFACT_ID}$", description="An artifact's or a hosted model's id: 16 hex digits.")
]
_IdAsked = Annotated[str, Query(pattern=f"^{ARTIFACT_ID}$")]
_Tag = Annotated[str, Path(pattern=f"^{NAME}$", description="Such as `latest`.")]


@router.get("", responses=refusals(401, 422, 429, 503))
async def search(
    caller: TheCaller,
    gateway: TheGateway,
    q: Annotated[
        str,
        Query(
            max_length=1000,
            description="Words, and filters such as `kind:peft works-with:REPO metric:loss<0.5 sort:-accuracy`.",
        ),
    ] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> LakePage:
    """What a query finds, the nearest first; without words, the newest."""
    return await gateway.state.lake.search(await viewer_of(gateway.state, caller), q, limit=limit, offset=offset)


@router.get("/names/resolve", responses=refusals(401, 404, 422, 429, 503))
async def resolve(
    ref: Annotated[str, Query(min_length=1, max_length=256, description="`lake://OWNER/NAME@HASH`, or with `:TAG`.")],
    caller: TheCaller,
    gateway: TheGateway,
) -> Entry:
    """What a name means now."""
    return await gateway.state.lake.resolve(await viewer_of(gateway.state, caller), ref)


@router.get("/{entry_id}/compare", responses=refusals(401, 404, 422, 429, 503))
async def compare(entry_id: _Id, other: _IdAsked, caller: TheCaller, gateway: TheGateway) -> Comparison:
    """Two entries by record, and the request that compares their weights and behaviour."""
    return await gateway.state.lake.compare(await viewer_of(gateway.state, caller), entry_id, other)


@router.get("/{entry_id}", responses=refusals(401, 404, 422, 429, 503))
async def show_card(entry_id: _Id, caller: TheCaller, gateway: TheGateway) -> Card:
    """All that is known of an entry, each statement marked with its source."""
    return await gateway.state.lake.card(await viewer_of(gateway.state, caller), entry_id)


@router.patch("/{entry_id}", responses=refusals(400, 401, 404, 413, 422, 429, 503))
async def change(entry_id: _Id, said: EntryChange, caller: TheCaller, gateway: TheGateway) -> Card:
    """Set who sees one's own artifact, and what its owner says of it."""
    found = await gateway.state.lake.change(await viewer_of(gateway.state, caller), entry_id, said)
    if said.visibility is not None:
        note(gateway, caller, "artifact visibility", artifact=entry_id, visibility=said.visibility)
    return found


@router.delete("/{entry_id}", status_code=204, responses=_GONE | refusals(401, 404, 422, 429, 503))
async def delete(entry_id: _Id, caller: TheCaller, gateway: TheGateway) -> Response:
    """Remove an artifact of one's own; a tombstone stays."""
    own = None if caller.role == "admin" else caller.tenant
    artifact = await gateway.state.artifacts.find(entry_id, own, key=caller.key_id, own=True)
    await gateway.state.artifacts.delete(artifact)
    note(gateway, caller, "artifact deleted", artifact=entry_id, owner=artifact.tenant, sha256=artifact.hash)
    return Response(status_code=204)


@router.get("/{entry_id}/lineage", responses=refusals(401, 404, 422, 429, 503))
async def lineage(
    entry_id: _Id, caller: TheCaller, gateway: TheGateway, depth: Annotated[int, Query(ge=1, le=64)] = 3
) -> LineageGraph:
    """What an entry, also a deleted one, came of and what came of it."""
    return await gateway.state.lake.lineage(await viewer_of(gateway.state, caller), entry_id, depth)


@router.get("/{entry_id}/versions", responses=refusals(401, 404, 422, 429, 503))
async def versions(entry_id: _Id, caller: TheCaller, gateway: TheGateway) -> list[Entry]:
    """Those of the same owner and name, the newest first."""
    return list(await gateway.state.lake.versions(await viewer_of(gateway.state, caller), entry_id))


@router.get("/{entry_id}/cite", responses=refusals(401, 404, 422, 429, 503))
async def cite(entry_id: _Id, caller: TheCaller, request: Request, gateway: TheGateway) -> Citation:
    """BibTeX with the hash, and the call that makes it again."""
    viewer = await viewer_of(gateway.state, caller)
    return await gateway.state.lake.cite(viewer, entry_id, gateway.public_url(request))


@router.put("/{entry_id}/tags/{tag}", responses=refusals(401, 404, 413, 422, 429, 503))
async def put_tag(entry_id: _Id, tag: _Tag, caller: TheCaller, gateway: TheGateway) -> Tag:
    """Have a tag point to one's own artifact, wherever it pointed before."""
    return await gateway.state.lake.tag(await viewer_of(gateway.state, caller), entry_id, tag)


@router.delete("/{entry_id}/tags/{tag}", status_code=204, responses=_GONE | refusals(401, 404, 422, 429, 503))
async def delete_tag(entry_id: _Id, tag: _Tag, caller: TheCaller, gateway: TheGateway) -> Response:
    """Take a tag off."""
    await gateway.state.lake.untag(await viewer_of(gateway.state, caller), entry_id, tag)
    return Response(status_code=204)
