"""`/page/playground`: look into a model without writing code. Each tool runs a method, as `POST /v1/jobs` does."""

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from interlace.methods import find
from interlace.protocol.artifact import LAYOUTS, AdapterRef
from interlace.protocol.errors import InterlaceError, InvalidRequest
from interlace.protocol.ids import JOB_ID
from interlace.protocol.jobs import JobView
from interlace.protocol.method import Envelope, MethodRequest, Payload
from interlace_server.doors.auth import Caller, TheCaller
from interlace_server.gateway import Gateway, TheGateway
from interlace_server.page.frame import Nav, PageRoute, digest, done, page, part
from interlace_server.page.grids import grids_of
from interlace_server.page.tools import TOOLS
from interlace_server.page.tools.base import Asked, Drawn, Extra, Field, Tool, plain, result_of, written
from interlace_server.routes.jobs import delete_job
from interlace_server.routes.methods import run_method
from interlace_server.viewer import viewer_of
from interlace_state.models import ModelCard

NAV = Nav("/page/playground", "Playground", 10)
router = APIRouter(prefix="/page/playground", route_class=PageRoute, include_in_schema=False)

_ToolName = Annotated[str, Path(max_length=32)]
_JobId = Annotated[str, Path(pattern=f"^{JOB_ID}$")]
_LONGEST_PICTURE = 3 << 20  # bytes
_MOST_CHOICES = 100
_MOST_TEXTS, _LONGEST_TEXT = 64, 4000  # characters
_MOST_PICTURES = 128
_PNG = b"\x89PNG\r\n\x1a\n"
#: What a tool may trip over in numbers that are not what its method gives.
_STRANGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Code:
    """A text to copy."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Played:
    """A job of a tool: how it stands and, at its end, what came out."""

    view: JobView
    asked: Asked
    seed: int
    drawn: Drawn | None = None
    #: Why there is nothing to see.
    problem: str = ""
    warnings: Sequence[str] = ()


@router.get("")
async def first(request: Request, caller: TheCaller, gateway: TheGateway) -> Response:
    return await _shown(request, caller, gateway, next(iter(TOOLS.values())))


@router.get("/{name}")
async def tool_page(
    name: _ToolName,
    request: Request,
    caller: TheCaller,
    gateway: TheGateway,
    model: Annotated[str, Query(max_length=128)] = "",
    adapter: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    """``model`` and ``adapter`` are chosen beforehand, by whoever links here."""
    values = {"adapter": adapter} if adapter else None
    return await _shown(request, caller, gateway, _tool(name), model=model, values=values)


@router.post("/{name}")
async def run(name: _ToolName, request: Request, caller: TheCaller, gateway: TheGateway) -> Response:
    """Start a job; the form comes back, with what is wrong in it, where it starts none."""
    tool = _tool(name)
    form = {key: value for key, value in (await request.form()).items() if isinstance(value, str)}
    try:
        if not form.get("model"):
            raise InvalidRequest("No model is chosen.")
        card = next((one for one in await _models(gateway, caller, tool) if one.key.slug == form["model"]), None)
        params = tool.asked(form) if card is None else tool.completed(tool.asked(form), card)
        asked = MethodRequest(method=tool.method, model=form["model"], params=params)
        view = await run_method(asked, caller, request, Response(), gateway)
    except InterlaceError as error:
        status, chosen = error.http_status, form.get("model", "")
        return await _shown(
            request, caller, gateway, tool, status=status, values=form, model=chosen, problem=str(error)
        )
    assert isinstance(view, JobView)
    return done(f"/page/playground/{name}/{view.id}")


@router.get("/{name}/{job_id}")
async def job_page(
    name: _ToolName, job_id: _JobId, request: Request, caller: TheCaller, gateway: TheGateway
) -> Response:
    tool = _tool(name)
    played = await _played(gateway, caller, tool, job_id)
    values = await asyncio.to_thread(_filled, tool, played.asked)
    return await _shown(request, caller, gateway, tool, values=values, model=played.view.slug, played=played)


@router.get("/{name}/{job_id}/part")
async def job_part(
    name: _ToolName, job_id: _JobId, request: Request, caller: TheCaller, gateway: TheGateway
) -> Response:
    """How a job stands, for a page that is open."""
    tool = _tool(name)
    played = await _played(gateway, caller, tool, job_id)
    codes = await _codes(request, gateway, caller, tool, played)
    return part(request, "_played.html", digest(played.view), tool=tool, played=played, codes=codes)


@router.post("/{name}/{job_id}/cancel")
async def cancel(name: _ToolName, job_id: _JobId, caller: TheCaller, gateway: TheGateway) -> Response:
    _tool(name)
    await gateway.state.jobs.show(job_id, caller.tenant)
    await delete_job(job_id, caller, gateway, forget=False)
    return done(f"/page/playground/{name}/{job_id}")


@router.get("/{name}/{job_id}/pictures/{number}.png")
async def picture(
    name: _ToolName,
    job_id: _JobId,
    number: Annotated[int, Path(ge=0, le=1000)],
    caller: TheCaller,
    gateway: TheGateway,
) -> Response:
    """A picture of a result. What a child wrote goes out as a PNG, or not at all."""
    tool = _tool(name)
    view = await gateway.state.jobs.show(job_id, caller.tenant)
    envelope = await _envelope(gateway, tool, view)
    pictures = envelope.result.get("pictures", []) if envelope is not None else []
    try:
        data = base64.b64decode(pictures[number]["png"], validate=True)
    except (*_STRANGE, binascii.Error):
        data = b""
    if not data.startswith(_PNG) or len(data) > _LONGEST_PICTURE:
        raise HTTPException(404, "There is no such picture.")
    return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def _tool(name: str) -> Tool:
    if name not in TOOLS:
        raise HTTPException(404, f"There is no tool {name!r}; there are {', '.join(TOOLS)}.")
    return TOOLS[name]


async def _shown(
    request: Request,
    caller: Caller,
    gateway: Gateway,
    tool: Tool,
    *,
    status: int = 200,
    values: dict[str, str] | None = None,
    model: str = "",
    problem: str = "",
    played: Played | None = None,
) -> Response:
    hosted = await _models(gateway, caller, tool)
    shown = {field.name: field.value for field in tool.fields} | (values or {})
    codes = [] if played is None else await _codes(request, gateway, caller, tool, played)
    return page(
        request,
        "playground.html",
        status,
        tools=TOOLS.values(),
        tool=tool,
        models=[(card.key.slug, str(card.key)) for card in hosted],
        model=model,
        shown=shown,
        choices={one.name: await _choices(gateway, caller, one, shown[one.name]) for one in tool.fields if one.finds},
        problem=problem,
        played=played,
        codes=codes,
        seen="" if played is None else digest(played.view),
    )


async def _models(gateway: Gateway, caller: Caller, tool: Tool) -> list[ModelCard]:
    """The hosted models that a tool is for, and this caller may use."""
    cards = [one.card for one in await gateway.state.models.all()]
    return [
        card
        for card in sorted(cards, key=lambda card: card.key.slug)
        if card.key.wrapper == tool.wrapper
        and card.key.task in (None, "text-generation")
        and caller.reaches(card.key.repo_id)
    ]


async def _choices(gateway: Gateway, caller: Caller, field: Field, chosen: str) -> list[tuple[str, str, bool]]:
    """What the lake has for a field, the newest first: (value, name, whether it is chosen)."""
    found = await gateway.state.lake.search(await viewer_of(gateway.state, caller), field.finds, limit=_MOST_CHOICES)
    values = [(f"artifact:{one.id}", f"{one.name or one.id} ({one.owner})") for one in found.entries]
    bare = chosen.partition("@")[0]
    if bare and bare not in dict(values):
        values.insert(0, (chosen, chosen))
    return [("", "none", not bare), *((value, name, value.partition("@")[0] == bare) for value, name in values)]


async def _played(gateway: Gateway, caller: Caller, tool: Tool, job_id: str) -> Played:
    """Raises UnknownJob, also for one of another method."""
    view = await gateway.state.jobs.show(job_id, caller.tenant)
    if view.method is None or view.method.partition("@")[0] != tool.method:
        raise HTTPException(404, f"Job {job_id} is none of this tool's; it ran {view.method or 'a trace'}.")
    if view.result_size is not None and view.result_size > gateway.config.page.picture_bytes:
        limit = f"{gateway.config.page.picture_bytes:,} bytes (`page.picture_bytes`)"
        return Played(view, {}, 0, problem=f"The result is larger than the {limit} that are drawn; fetch it by code.")
    try:
        envelope = await _envelope(gateway, tool, view)
        if envelope is not None:
            asked, seed = plain(envelope.provenance.params), envelope.provenance.seed
            extra = await _extra(gateway, caller, tool, envelope)
            drawn = await asyncio.to_thread(_drawn, tool, envelope, asked, extra)
            warnings = list(dict.fromkeys([*envelope.warnings, *map(str, envelope.result["warnings"])]))
            return Played(view, asked, seed, drawn, warnings=warnings)
    except _STRANGE:
        return Played(view, {}, 0, problem="The result is not as this method gives it, or too large to be drawn.")
    said = await _payload(gateway, caller, job_id)
    why = view.text or f"The job is {view.state}." if view.state.ended else ""
    return Played(view, said.params if said else {}, said.seed if said else 0, problem=why)


async def _envelope(gateway: Gateway, tool: Tool, view: JobView) -> Envelope | None:
    """A job's result; None where there is none, or none that is small enough to be drawn."""
    if view.result_size is None or view.result_size > gateway.config.page.picture_bytes:
        return None
    data = await gateway.state.results.read(view.id)
    return await asyncio.to_thread(Envelope.model_validate_json, data)


async def _payload(gateway: Gateway, caller: Caller, job_id: str) -> Payload | None:
    """What a job that has not ended was asked for."""
    job = await gateway.state.jobs.record(job_id, caller.tenant)
    try:
        return Payload.model_validate_json(await gateway.state.results.payload(job))
    except (InterlaceError, ValidationError):
        return None


async def _extra(gateway: Gateway, caller: Caller, tool: Tool, envelope: Envelope) -> Extra:
    """What a tool draws from an artifact; nothing where it is gone, or too large."""
    if not tool.reads or not envelope.artifacts:
        return Extra()
    layout = LAYOUTS[tool.reads]
    try:
        ref = AdapterRef.parse(envelope.artifacts[0].ref, "artifact")
        artifact = await gateway.state.artifacts.named(ref, caller.tenant, caller.key_id)
        if envelope.artifacts[0].size > gateway.config.page.picture_bytes or layout.tensors is None:
            return Extra()
        tensors = await gateway.state.artifacts.read(artifact, layout.tensors)
        config = json.loads(await gateway.state.artifacts.read(artifact, str(layout.config)))
        return Extra(await asyncio.to_thread(grids_of, tensors, layout.tensors), config)
    except InterlaceError:
        return Extra()


def _drawn(tool: Tool, envelope: Envelope, asked: Asked, extra: Extra) -> Drawn:
    """Raises whatever comes of numbers that are not what the method gives."""
    found = tool.drawn(result_of(envelope, find(tool.method).result), asked, extra)
    if len(found.texts) > _MOST_TEXTS or sum(len(strip.pictures) for strip in found.strips) > _MOST_PICTURES:
        raise ValueError("more than a page holds")
    figures = [replace(one, table=one.table.bounded()) for one in found.figures]
    return replace(found, figures=figures, texts=[(label, text[:_LONGEST_TEXT]) for label, text in found.texts])


def _filled(tool: Tool, asked: Asked) -> dict[str, str]:
    """The form of a job; its own where the job's parameters are none that the form could have sent."""
    try:
        return tool.form(asked)
    except _STRANGE:
        return {}


async def _codes(request: Request, gateway: Gateway, caller: Caller, tool: Tool, played: Played) -> list[Code]:
    if not played.asked:
        return []
    cards = await _models(gateway, caller, tool)
    card = next((one for one in cards if one.key.slug == played.view.slug), None)
    if card is None:
        return []
    url = gateway.public_url(request)
    alone = [one.key.repo_id for one in cards].count(card.key.repo_id) == 1
    codes = []
    try:
        call = _call(tool, played, card.key.repo_id if alone else card.key.slug, url)
        codes.append(Code("client-code", "The job that ran", call))
        own = tool.trace(card, played.asked, played.seed)
        if own is not None:
            own = own.replace("= URL", f"= {json.dumps(url)}")
            codes.append(Code("nnsight-code", "The same in stock nnsight", own))
    except _STRANGE:  # another version's parameters
        return codes
    return codes


def _call(tool: Tool, played: Played, model: str, url: str) -> str:
    """What of our client's runs this job once more."""
    spec = find(tool.method)
    params = spec.params.model_validate(played.asked).model_dump(mode="json", exclude_defaults=True)
    said: dict[str, Any] = {"model": model, "params": params} | ({"seed": played.seed} if played.seed else {})
    inner = "".join(f"{name}={written(value)},\n" for name, value in said.items()).replace("\n", "\n    ")
    return (
        "import interlace\n\n"
        f"client = interlace.connect({json.dumps(url)})"
        "  # your key: `api_key=...`, or NDIF_API_KEY in the environment\n"
        f'result = client.run(\n    "{tool.method}",\n    {inner.rstrip()}\n)\n'
        'for table in result.tables:\n    print(table.name, table.frame(), sep="\\n")\n'
        f'result.plot().savefig("{tool.name}.png")\n'
    )
