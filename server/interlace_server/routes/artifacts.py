"""`/v1/artifacts`: a tenant's adapters and what else it keeps here: upload, list, look, fetch, delete."""

import asyncio
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, File, Form, Path, Query, Request, UploadFile
from starlette.responses import Response, StreamingResponse

from interlace.protocol.artifact import FILES, Artifact, ArtifactKind, ArtifactList, Base
from interlace.protocol.errors import Forbidden, InvalidArtifact, InvalidRequest
from interlace.protocol.ids import ARTIFACT_ID, LABEL, NAME
from interlace_server.allow import SharedPath
from interlace_server.changes import note
from interlace_server.delivery import BYTES, deliver_part
from interlace_server.doors.auth import Caller, TheCaller
from interlace_server.errors import Responses, refusals
from interlace_server.gateway import Gateway, TheGateway
from interlace_server.job_actions import reach
from interlace_server.viewer import viewer_of
from interlace_state.artifacts import check_names

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"], route_class=SharedPath)

_CHUNK = 1 << 20  # bytes
_FILE = (
    "^("
    + "|".join(sorted(name.replace(".", r"\.") for needed, more in FILES.values() for name in needed | more))
    + ")$"
)
_GONE: Responses = {204: {"description": "The artifact and its files are gone."}}

_Id = Annotated[str, Path(pattern=f"^{ARTIFACT_ID}$", description="An artifact's id: 16 hex digits.")]


@router.post("", status_code=201, responses=refusals(400, 401, 404, 408, 413, 422, 429, 503))
async def upload(
    kind: Annotated[ArtifactKind, Form(description="What the files are.")],
    files: Annotated[list[UploadFile], File(description="The files, by their names: safetensors and JSON.")],
    caller: TheCaller,
    gateway: TheGateway,
    name: Annotated[str, Form(max_length=128, pattern=f"^{LABEL}$", description="For people.")] = "",
    model: Annotated[
        str,
        Form(
            max_length=256,
            pattern=f"^{LABEL}$",
            description="The hosted model that it is for; default: as it says itself.",
        ),
    ] = "",
) -> Artifact:
    """Take an artifact in. Its files never change from then on; it is for its tenant until that says otherwise."""
    named = _by_name(kind, files)
    staged: dict[str, FilePath] = {}
    try:
        for file_name, file in named.items():
            staged[file_name] = gateway.state.artifacts.stage()
            await _copy(file, staged[file_name])
        base = await _base(gateway, model, caller) if model else None
        artifact = await gateway.state.artifacts.add(
            caller.tenant, kind, staged, caller.limits, name=name, creator=caller.key_id, base=base
        )
    finally:
        for path in staged.values():
            path.unlink(missing_ok=True)
    _note(gateway, caller, "artifact uploaded", artifact)
    return artifact


def _by_name(kind: ArtifactKind, files: list[UploadFile]) -> dict[str, UploadFile]:
    """Raises InvalidArtifact where they are not what such an artifact has, once each."""
    names = [file.filename or "" for file in files]
    if len(set(names)) < len(names):
        raise InvalidArtifact("Two files have one name.")
    named = dict(zip(names, files, strict=True))
    check_names(kind, named)
    return named


async def _copy(file: UploadFile, target: FilePath) -> None:
    with target.open("wb") as copy:
        while chunk := await file.read(_CHUNK):
            await asyncio.to_thread(copy.write, chunk)


async def _base(gateway: Gateway, name: str, caller: Caller) -> Base:
    """The hosted model of this repo id or slug as it is now. Raises InvalidRequest where there is none."""
    for hosted in await gateway.state.models.all():
        card = hosted.card
        if name in (card.key.repo_id, card.key.slug) and caller.reaches(card.key.repo_id):
            return Base(repo_id=card.key.repo_id, key=card.key.canonical, commit=card.commit)
    raise InvalidRequest(f"`model` is {name[:96]!r}, and this server hosts no such model for you; leave it out.")


@router.get("", responses=refusals(401, 403, 422, 429, 503))
async def list_artifacts(
    caller: TheCaller,
    gateway: TheGateway,
    tenant: Annotated[
        str | None, Query(pattern=f"^{NAME}$", description="For admins: of this tenant; default: one's own.")
    ] = None,
) -> ArtifactList:
    """One's artifacts, the newest first."""
    if tenant not in (None, caller.tenant) and caller.role != "admin":
        raise Forbidden(f"Artifacts of {tenant} are not yours to see: leave `tenant` out, or use an admin's key.")
    found = await gateway.state.artifacts.all(tenant or caller.tenant)
    viewer = await viewer_of(gateway.state, caller)
    return ArtifactList(artifacts=tuple(one for one in found if viewer.sees(one)))


@router.get("/{artifact_id}", responses=refusals(401, 404, 422, 429, 503))
async def show_artifact(artifact_id: _Id, caller: TheCaller, gateway: TheGateway) -> Artifact:
    """An artifact's manifest."""
    return await gateway.state.artifacts.find(artifact_id, reach(caller), key=caller.key_id)


@router.delete("/{artifact_id}", status_code=204, responses=_GONE | refusals(401, 404, 422, 429, 503))
async def delete_artifact(artifact_id: _Id, caller: TheCaller, gateway: TheGateway) -> Response:
    """Remove an artifact. A job that has begun goes on with it; one that waits will not find it."""
    artifact = await gateway.state.artifacts.find(artifact_id, reach(caller), key=caller.key_id, own=True)
    await gateway.state.artifacts.delete(artifact)
    _note(gateway, caller, "artifact deleted", artifact)
    return Response(status_code=204)


@router.get(
    "/{artifact_id}/files/{name}",
    response_class=StreamingResponse,
    responses=BYTES | refusals(401, 404, 422, 429, 503),
)
async def artifact_file(
    artifact_id: _Id,
    name: Annotated[str, Path(pattern=_FILE, description="As the manifest names it.")],
    caller: TheCaller,
    request: Request,
    gateway: TheGateway,
) -> Response:
    """Stream a file of an artifact of one's own, or of a public one; no other is for other tenants, admins included.

    `Range` fetches the rest of one that broke off.
    """
    artifact = await gateway.state.artifacts.find(artifact_id, caller.tenant, key=caller.key_id)
    size, stream = await gateway.state.artifacts.open(artifact, name)
    return deliver_part(request, size, stream, tag=f"{artifact.hash[:16]}-{name}", what="file")


def _note(gateway: Gateway, caller: Caller, action: str, artifact: Artifact) -> None:
    more = {"kind": artifact.kind, "bytes": artifact.size, "sha256": artifact.hash}
    note(gateway, caller, action, artifact=artifact.id, owner=artifact.tenant, **more)
