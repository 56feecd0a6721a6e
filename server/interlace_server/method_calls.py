"""A request for a method before it is a job: its model, its parameters, its artifacts, what it would cost."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from interlace.methods import find
from interlace.methods.base import Estimate, ModelFacts, Params, Spec
from interlace.protocol.artifact import AdapterRef, edit_ref
from interlace.protocol.errors import InvalidRequest, LimitExceeded, UnknownModel
from interlace.protocol.fields import wrong
from interlace.protocol.job import JobKind
from interlace.protocol.method import Allowance, MethodCall, MethodRequest, Payload, named
from interlace.protocol.model import ModelKey, is_repo_id
from interlace_server.doors.adapters import check_edits, check_opened
from interlace_server.doors.auth import Caller
from interlace_server.gateway import Gateway
from interlace_server.intake import servable
from interlace_state.models import HostedModel, ModelCard

#: Of a checkpoint's configuration, under the names that families have for them.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
#: A guess of time may be so many times too long.
_DOUBT = 5
#: What any run takes, however small: libraries' first calls, texts, a result. 12 to 40 MiB more than methods' own
#: estimates were measured on models of 0.2 to 3 M parameters (`benchmarks/methods/diffusion_memory.py`).
_BYTES_OF_A_RUN = 20 << 20
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


async def whole(gateway: Gateway, asked: MethodRequest, caller: Caller) -> MethodRequest:
    """The request with what it leaves out to the job that it resumes.

    Raises UnknownJob; InvalidRequest for a job that cannot be resumed, or where something differs from it.
    """
    if asked.resume is None:
        return asked
    job = await gateway.state.jobs.record(asked.resume, caller.tenant)
    if job.kind is not JobKind.METHOD or job.method is None:
        raise InvalidRequest(f"`resume` names job {asked.resume}, which runs no method.")
    if not (await gateway.state.jobs.show(asked.resume, caller.tenant)).state.ended:
        raise InvalidRequest(f"`resume` names job {asked.resume}, which has not ended: follow it, or cancel it first.")
    former = await gateway.state.checkpoints.payload(asked.resume)
    if former is None:
        raise InvalidRequest(f"`resume` names job {asked.resume}, of which no checkpoint is kept: run it anew.")
    said = Payload.model_validate_json(former)
    known = {"params": said.params, "edits": list(said.edits), "seed": said.seed}
    return asked.model_copy(update={name: value for name, value in known.items() if name not in asked.model_fields_set})


async def model_named(gateway: Gateway, name: str, caller: Caller) -> HostedModel:
    """The hosted model of a repo id, a slug or a key. Raises as `servable`, InvalidModelKey."""
    if ":" in name:
        return await servable(gateway, ModelKey.parse(name), caller)
    keys = [one.card.key for one in await gateway.state.models.all()]
    found = [key for key in keys if name in (key.repo_id, key.slug) and caller.reaches(key.repo_id)]
    if len(found) > 1:
        raise InvalidRequest(
            f"`model` is {name[:96]!r}, and that is hosted more than once: say which by its slug "
            f"({', '.join(key.slug for key in found)})."
        )
    if found:
        return await servable(gateway, found[0], caller)
    if is_repo_id(name):
        return await servable(gateway, ModelKey(repo_id=name), caller)
    raise UnknownModel(name[:96], [str(key) for key in keys if caller.reaches(key.repo_id)])


async def prepared(
    gateway: Gateway, asked: MethodRequest, card: ModelCard, caller: Caller
) -> tuple[MethodCall, bytes, Params]:
    """What travels of a request: in the job's record and as its payload; and its parameters.

    Raises UnknownMethod, InvalidRequest that names each field, UnknownArtifact, AdapterRefused.
    """
    spec = find(asked.method)
    _check_runs_on(spec, card)
    params, said, digest = await asyncio.to_thread(_resolved, spec, asked)  # megabytes of texts take a moment
    opens = named(said, spec.takes)
    await check_opened(gateway, opens, caller)
    edits = [edit_ref(one, f"edits.{number}") for number, one in enumerate(asked.edits)]
    await check_edits(gateway, edits, card, caller)
    call = MethodCall(
        ref=spec.ref,
        seed=asked.seed,
        opens=opens,
        edits=tuple(asked.edits),
        params_sha256=digest,
        allowance=_allowance(gateway, caller),
        resume=asked.resume,
        creator=caller.key_id,
    )
    if asked.resume is not None:
        await _check_same(gateway, asked.resume, call, card, caller)
    payload = Payload(method=spec.ref, params=said, edits=tuple(asked.edits), seed=asked.seed)
    return call, payload.model_dump_json().encode(), params


def _check_runs_on(spec: Spec, card: ModelCard) -> None:
    """Raises InvalidRequest where a method is not for models of this kind."""
    if card.key.wrapper not in spec.wrappers:
        raise InvalidRequest(
            f"{spec.ref} runs on models of the kind {' or '.join(spec.wrappers)}; {card.key.repo_id} is a "
            f"{card.key.wrapper}."
        )


def _resolved(spec: Spec, asked: MethodRequest) -> tuple[Params, dict[str, Any], str]:
    """Parameters, also as JSON with every default filled in, and a digest of that. Raises InvalidRequest."""
    params = checked(spec, asked)
    said = params.model_dump(mode="json")
    return params, said, hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def checked(spec: Spec, asked: MethodRequest) -> Params:
    """The parameters of a request, `inputs` among them. Raises InvalidRequest."""
    if twice := sorted(set(asked.params) & set(asked.inputs)):
        raise InvalidRequest(f"`{twice[0]}` is in `params` and in `inputs`; say it once.")
    try:
        return spec.params.model_validate({**asked.params, **asked.inputs})
    except ValidationError as error:
        problems = [{**one, "loc": (_part(asked, one["loc"]), *one["loc"])} for one in error.errors(include_url=False)]
        sent = {"params": asked.params, "inputs": asked.inputs}
        said = wrong(problems, sent, {"params": spec.params, "inputs": spec.params})
        if any(one["type"] in ("missing", "extra_forbidden") for one in problems):
            said += f" `interlace methods show {spec.name}` says what each is."
        raise InvalidRequest(f"The request for {spec.ref} is not valid: {said}") from None


def _part(asked: MethodRequest, loc: Sequence[int | str]) -> str:
    return "inputs" if loc and loc[0] in asked.inputs else "params"


async def estimated(gateway: Gateway, spec: Spec, params: Params, card: ModelCard, caller: Caller) -> Estimate:
    """What a run would cost. Raises LimitExceeded where it is more than the caller may use; of time, by far."""
    facts = replace(facts_of(card), images=await _images(gateway, spec, params, caller))
    found = spec.estimate(params, facts)
    found = found.model_copy(update={"peak_bytes": found.peak_bytes + _BYTES_OF_A_RUN})
    speed = await gateway.state.models.speed(card.key)
    if speed is not None:
        found = found.model_copy(update={"seconds": round(speed * work_of(found), 3)})
    limits = caller.limits
    if found.peak_bytes > limits.memory_bytes:
        what = f"The memory that {spec.ref} would take with these parameters ({found.peak_bytes:,} bytes)"
        raise LimitExceeded(what, limits.memory_bytes, "bytes", "limits.memory_bytes")
    if found.seconds is not None and found.seconds > _DOUBT * limits.wall_seconds:
        what = f"The time that {spec.ref} would take with these parameters (about {found.seconds:,.0f} s)"
        raise LimitExceeded(what, limits.wall_seconds, "seconds", "limits.wall_seconds")
    return found


async def _images(gateway: Gateway, spec: Spec, params: Params, caller: Caller) -> dict[str, tuple[int, int, int]]:
    """How many images of which size the artifacts hold that a method would open."""
    takes = {path: kinds for path, kinds in spec.takes.items() if "images" in kinds}
    found: dict[str, tuple[int, int, int]] = {}
    for name in named(params.model_dump(mode="json"), takes) if takes else ():
        ref = AdapterRef.parse(name, "params")
        facts = (await gateway.state.artifacts.named(ref, caller.tenant, caller.key_id)).facts
        if all(type(facts.get(one)) is int for one in ("images", "height", "width")):
            found[name] = (facts["images"], facts["height"], facts["width"])
    return found


def work_of(cost: Estimate) -> float:
    """In tokens that go forward once; backward a token takes twice as long."""
    return cost.tokens * (1 + 2 * cost.backwards / max(1, cost.forwards))


def facts_of(card: ModelCard) -> ModelFacts:
    """What a model's card says of its size."""
    if card.key.wrapper == "DiffusionModel":
        return _facts_of_pipeline(card)
    config = {**card.config, **(card.config.get("text_config") or {})}
    hidden, vocabulary = _first(config, _HIDDEN) or 1024, config.get("vocab_size") or 50_000
    layers = _first(config, _LAYERS) or 12
    return ModelFacts(
        n_params=card.n_params or 12 * layers * hidden**2 + vocabulary * hidden,
        n_layers=layers,
        hidden_size=hidden,
        vocab_size=vocabulary,
        weight_bytes=_BYTES.get(card.dtype, 4),
    )


def _facts_of_pipeline(card: ModelCard) -> ModelFacts:
    """Its denoiser's size; where a card says nothing of it, Stable Diffusion 1.5's."""
    components = card.config.get("components") or {}
    unet = components.get("unet") or components.get("transformer") or {}
    text, vae = components.get("text_encoder") or {}, components.get("vae") or {}
    widths = tuple(one for one in unet.get("block_out_channels") or (320, 640, 1280, 1280) if type(one) is int)
    side = unet.get("sample_size") or 64
    height, width = side if isinstance(side, list) else (side, side)
    return ModelFacts(
        n_params=card.n_params or 1_000_000_000,
        n_layers=len(widths),
        hidden_size=max(widths, default=1280),
        vocab_size=_first(text, ("vocab_size",)) or 50_000,
        weight_bytes=_BYTES.get(card.dtype, 4),
        latents=(unet.get("in_channels") or 4, height, width),
        pixels=2 ** (len(vae.get("block_out_channels") or (1,) * 4) - 1),
        widths=widths,
        vae_width=next(iter(vae.get("block_out_channels") or ()), 128),
    )


def _first(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    return next((value for name in names if type(value := config.get(name)) is int and value > 0), None)


def _allowance(gateway: Gateway, caller: Caller) -> Allowance:
    limits, methods = caller.limits, gateway.config.methods
    return Allowance(
        artifact_bytes=limits.artifact_bytes,
        kept_artifact_bytes=limits.kept_artifact_bytes,
        kept_artifacts=limits.kept_artifacts,
        checkpoint_bytes=methods.checkpoint_bytes,
        checkpoint_seconds=methods.checkpoint_seconds,
        cancel_grace=methods.cancel_grace,
    )


async def _check_same(gateway: Gateway, former: str, call: MethodCall, card: ModelCard, caller: Caller) -> None:
    """Raises InvalidRequest unless a job is resumed as it was."""
    job = await gateway.state.jobs.record(former, caller.tenant)
    assert job.method is not None
    pairs: list[tuple[str, Any, Any]] = [
        ("method", call.ref, job.method.ref),
        ("model", card.key.canonical, job.model.canonical),
        ("params", call.params_sha256, job.method.params_sha256),
        ("edits", call.edits, job.method.edits),
        ("seed", call.seed, job.method.seed),
    ]
    for field, now, then in pairs:
        if now != then:
            raise InvalidRequest(
                f"`{field}` is not as in job {former}, which `resume` names: leave it out, or run a job of its own."
            )
