"""`/hf`: the little of the Hugging Face hub's API that a client needs who has no other network.

With ``HF_ENDPOINT=http://GATEWAY/hf`` stock nnsight, transformers and huggingface_hub find the config, the
tokenizer and the canonical id of every hosted model here. There are no weights to be had.
"""

import hashlib
import mimetypes
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from interlace.protocol.errors import ModelComing, NotAllowed
from interlace.protocol.model import ModelKey, is_repo_id, is_revision
from interlace_server import on_demand
from interlace_server.doors.auth import Caller, visible
from interlace_server.errors import Responses, refusals
from interlace_server.gateway import Gateway, TheGateway
from interlace_state.models import HostedModel, ModelCard

router = APIRouter(prefix="/hf", tags=["hub"])

_ELSEWHERE = "What else the hub has comes from the hub, in a process without HF_ENDPOINT."
_PATIENCE = 8.0  # seconds; a hub's client waits for ten
_LIBRARY = {"TransformersModel": "transformers", "DiffusionModel": "diffusers"}
_FILE: Responses = {
    200: {"content": {"*/*": {"schema": {}}}, "description": "The file."},
    **refusals(404, 422, 503),
}


class Sibling(BaseModel):
    rfilename: str
    size: int


class ModelInfo(BaseModel):
    """What ``HfApi().model_info`` reads."""

    id: str
    modelId: str
    sha: str
    pipeline_tag: str | None
    library_name: str
    siblings: list[Sibling]
    tags: list[str] = []
    private: bool = False
    gated: bool = False
    disabled: bool = False
    downloads: int = 0
    likes: int = 0


class TreeEntry(BaseModel):
    type: Literal["file", "directory"] = "file"
    path: str
    size: int
    oid: str


class NotOnHub(Exception):
    """The hub's 404, whose code tells its client what is missing."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


async def not_on_hub(_request: object, error: Exception) -> JSONResponse:
    assert isinstance(error, NotOnHub)
    message = str(error)
    # A header can hold printable ASCII only; the body has the sentence as it is.
    printable = "".join(character if " " <= character <= "~" else "?" for character in message)
    headers = {"X-Error-Code": error.code, "X-Error-Message": printable}
    return JSONResponse({"detail": message, "error": message}, 404, headers)


@router.get("/api/models/{repo_id:path}/revision/{revision:path}", responses=refusals(404, 422, 503))
async def model_info_at(repo_id: str, revision: str, request: Request, gateway: TheGateway) -> ModelInfo:
    """A hosted model at a revision: `main`, the hosted one or its commit."""
    return await _info(gateway, await _find(request, gateway, repo_id, revision))


@router.get("/api/models/{repo_id:path}/tree/{rest:path}", responses=refusals(404, 422, 503))
async def tree(
    repo_id: str, rest: str, request: Request, gateway: TheGateway, recursive: bool = False
) -> list[TreeEntry]:
    """The small files of a hosted model, and its folders; ``rest`` is `REVISION` or `REVISION/FOLDER`."""
    card, folder = await _find_in(request, gateway, repo_id, rest)
    sizes = await gateway.state.models.file_sizes(card.key)
    inside = f"{folder.rstrip('/')}/" if folder else ""
    entries: dict[str, TreeEntry] = {}
    for name, size in sizes.items():
        if not name.startswith(inside):
            continue
        path = name if recursive else inside + name.removeprefix(inside).split("/")[0]
        is_file = path == name
        oid = hashlib.sha1(f"{card.commit}/{path}".encode()).hexdigest()
        entries[path] = TreeEntry(
            type="file" if is_file else "directory", path=path, size=size if is_file else 0, oid=oid
        )
    if folder and not entries:
        raise NotOnHub("EntryNotFound", f"{card.key.repo_id} has no folder {folder} here.")
    return list(entries.values())


@router.get("/api/models/{repo_id:path}", responses=refusals(404, 422, 503))
async def model_info(repo_id: str, request: Request, gateway: TheGateway) -> ModelInfo:
    """A hosted model; its `id` is what goes into a model key."""
    return await _info(gateway, await _find(request, gateway, repo_id, "main"))


@router.get("/{repo_id:path}/resolve/{rest:path}", response_class=Response, responses=_FILE)
async def resolve(repo_id: str, rest: str, request: Request, gateway: TheGateway) -> Response:
    """A small file of a hosted model; ``rest`` is `REVISION/FILE`."""
    card, name = await _find_in(request, gateway, repo_id, rest)
    try:
        content = await gateway.state.models.file(card.key, name)
    except FileNotFoundError:
        raise NotOnHub(
            "EntryNotFound",
            f"{card.key.repo_id} has no file {name} here. This server gives out configuration and tokenizer, "
            "never weights: trace with remote=True.",
        ) from None
    headers = {"X-Repo-Commit": card.commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(content, headers=headers, media_type=media_type)


router.head(
    "/{repo_id:path}/resolve/{rest:path}", response_class=Response, responses=_FILE, operation_id="head_resolve"
)(resolve)


@router.api_route("/{rest:path}", methods=["GET", "HEAD", "POST"], include_in_schema=False)
async def nothing_else(rest: str) -> Response:
    """Datasets, Spaces, searches: what a hub has beside models."""
    raise NotOnHub("RepoNotFound", _nothing_else(rest))


async def _info(gateway: Gateway, card: ModelCard) -> ModelInfo:
    sizes = await gateway.state.models.file_sizes(card.key)
    return ModelInfo(
        id=card.key.repo_id,
        modelId=card.key.repo_id,
        sha=card.commit,
        pipeline_tag=card.key.task,
        library_name=_LIBRARY[card.key.wrapper],
        siblings=[Sibling(rfilename=name, size=size) for name, size in sizes.items()],
    )


async def _find(request: Request, gateway: Gateway, repo_id: str, revision: str) -> ModelCard:
    card, rest = await _find_in(request, gateway, repo_id, revision)
    if rest:
        raise _no_revision(card, revision)
    return card


async def _find_in(request: Request, gateway: Gateway, repo_id: str, rest: str) -> tuple[ModelCard, str]:
    """The model that `REVISION/PATH` belongs to, and PATH; a revision may hold slashes. Raises NotOnHub."""
    models = visible(await gateway.state.models.all(), request)
    cards = [model.card for model in models if model.card.key.repo_id.lower() == repo_id.lower()]
    cards = cards or await _brought(request, gateway, repo_id, rest)
    if not cards:
        raise NotOnHub("RepoNotFound", _no_repo(repo_id, models))
    cards = [await _described(gateway, card) for card in cards]
    # The hub's default branch stands for whatever is hosted, but a model hosted at `main` goes first.
    cards.sort(key=lambda card: card.key.revision != "main")
    for card in cards:
        for revision in (card.key.revision, card.commit, "main"):
            if rest == revision or rest.startswith(f"{revision}/"):
                return card, rest[len(revision) + 1 :]
    raise _no_revision(cards[0], rest)


async def _brought(request: Request, gateway: Gateway, repo_id: str, rest: str) -> list[ModelCard]:
    """A model that may come on demand; its weights come with its first job. Where keys are needed, here, too.

    Raises NotOnHub where the policy says no.
    """
    viewer: Caller | None = request.scope["state"].get("viewer")
    if not on_demand.is_on(gateway) or not is_repo_id(repo_id) or (viewer is not None and not viewer.reaches(repo_id)):
        return []
    if viewer is None and (gateway.config.exposed or await gateway.state.tenants.any()):
        return []
    revision = rest.partition("/")[0]
    key = ModelKey(repo_id=repo_id, revision=revision if is_revision(revision) else "main")
    try:
        return [(await on_demand.bring(gateway, key)).card]
    except NotAllowed as error:
        raise NotOnHub("RepoNotFound", str(error)) from None


async def _described(gateway: Gateway, card: ModelCard) -> ModelCard:
    """The card of a model whose small files are here. Raises ModelComing, NotOnHub if they cannot be had."""
    if card.commit != on_demand.NO_COMMIT:
        return card
    found = await on_demand.described(gateway, card.key, _PATIENCE)
    if found is None:
        raise ModelComing
    if found.commit == on_demand.NO_COMMIT:
        raise NotOnHub("RepoNotFound", found.failure or "It cannot be had.")
    return found


def _no_repo(repo_id: str, models: list[HostedModel]) -> str:
    hosted = ", ".join(sorted({model.card.key.repo_id for model in models})) or "none yet"
    if repo_id.startswith(("datasets/", "spaces/")):
        return _nothing_else(repo_id)
    return f"This server does not host {repo_id}. Hosted models: {hosted}. {_ELSEWHERE}"


def _nothing_else(asked: str) -> str:
    return f"This server has no {asked[:80]}, but configuration and tokenizer of the models that it hosts. {_ELSEWHERE}"


def _no_revision(card: ModelCard, wanted: str) -> NotOnHub:
    return NotOnHub(
        "RevisionNotFound",
        f"{card.key.repo_id} is hosted at revision {card.key.revision} (commit {card.commit}), not at {wanted}.",
    )
