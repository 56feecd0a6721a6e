"""How a job is taken in, whichever route brings it: may its model be used, is it the same as before, is it durable."""

import asyncio
import hashlib
import json
from typing import Annotated

from fastapi import Header, Request, Response
from redis.exceptions import RedisError

from interlace.protocol.errors import InterlaceError, ModelFailed, UnknownModel, Untrusted
from interlace.protocol.ids import IDEMPOTENCY_KEY
from interlace.protocol.job import Job, Limits
from interlace.protocol.model import ModelKey
from interlace_server import metrics, on_demand
from interlace_server.doors.auth import Caller
from interlace_server.errors import Responses
from interlace_server.gateway import Gateway
from interlace_state import log
from interlace_state.models import HostedModel, ModelState, Recent
from interlace_state.queue import ModelChanged, Submitted
from interlace_state.settings.limits import Admission

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=f"^{IDEMPOTENCY_KEY}$",
        description="Any text of the client's own: visible ASCII characters, without spaces.",
    ),
]
_QUICK = 256 << 10  # bytes of a payload that is hashed at once; a large one takes a second
REPLAYED: Responses = {
    200: {
        "headers": {
            "Idempotent-Replayed": {
                "description": "`true` where the job is one that the same request had made before.",
                "schema": {"type": "string", "enum": ["true"]},
            }
        }
    }
}


def job_limits(caller: Caller) -> Limits:
    """Those of a caller's limits that travel with its jobs."""
    return Limits.model_validate(caller.limits.model_dump(include=set(Limits.model_fields)))


async def take_in(
    gateway: Gateway,
    caller: Caller,
    job: Job,
    payload: bytes,
    model: HostedModel,
    request: Request,
    response: Response,
    *,
    idempotency_key: str | None,
    batching: bool,
    alone: bool = False,
    recent: Recent | None = None,
) -> str:
    """Make a job durable; its id, or that of the job which the same request had made before.

    ``alone``: whether it was asked that the job shares its forward with none; ``batching``: whether it may share it.
    ``recent``: where the model is from. Raises SessionRefused, IdempotencyConflict, TooMany, StoreFull; ModelChanged if
    the model is no more what was recent.
    """
    again = await asyncio.to_thread(_idempotency, idempotency_key, job, payload, alone) if idempotency_key else None
    ready = model.state is ModelState.READY
    submitted = await _accept(
        gateway, job, payload, caller.limits, again, model_ready=ready, batching=batching, recent=recent
    )
    if submitted.replayed:
        response.headers["Idempotent-Replayed"] = "true"
        return submitted.job_id
    with log.instead_of(OSError, "audit_failed"):  # the job is in
        if len(payload) > _QUICK:
            await asyncio.to_thread(_note, gateway, caller, job, payload, request)
        else:
            _note(gateway, caller, job, payload, request)
    if not ready:
        await _look_again(gateway, model.card.key, caller)
    return job.id


async def _look_again(gateway: Gateway, key: ModelKey, caller: Caller) -> None:
    """End jobs that were taken in for a model just after the workers had given it up and ended those that waited."""
    try:
        await servable(gateway, key, caller)
    except (ModelFailed, UnknownModel) as error:
        await gateway.state.queue.fail_waiting(key, str(error))
    except RedisError as error:  # the jobs are in all the same
        log.warning("redis_failed", path="/request", error=str(error))


async def servable(gateway: Gateway, key: ModelKey, caller: Caller, recent: HostedModel | None = None) -> HostedModel:
    """The model, or ``recent`` if that will do for whoever asks `submit` whether it still holds.

    Raises UnknownModel, also for one that the caller may not use, NotAllowed, Untrusted or ModelFailed.
    """
    if not caller.reaches(key.repo_id):
        raise UnknownModel(str(key), caller.models or ())
    try:
        model = recent or await gateway.state.models.find(key)
    except UnknownModel:
        if on_demand.is_on(gateway):
            return await on_demand.bring(gateway, key)
        if caller.models is None:
            raise
        raise UnknownModel(str(key), caller.models) from None  # the names of others are not for this key
    if model.card.trusted is not None and caller.tenant not in model.card.trusted:
        raise Untrusted(str(model.card.key), caller.tenant)
    if model.state is ModelState.FAILED:
        raise ModelFailed(str(model.card.key), model.card.failure or "no reason is known")
    return model


def _idempotency(key: str, job: Job, payload: bytes, alone: bool) -> tuple[str, str]:
    """Digests of a client's key, and of what makes two requests the same: all but the session that waits for it."""
    request = hashlib.sha256(f"{job.model.canonical}\n{json.dumps(job.env, sort_keys=True)}\n{job.compress}\n".encode())
    request.update(payload)
    # Behind the payload, and only what was asked for: else a request would be another than it was for an older gateway.
    if job.method is not None and job.method.resume is not None:
        request.update(f"\nresume {job.method.resume}".encode())
    if job.stream_saves:
        request.update(b"\nstream saves")
    if alone:
        request.update(b"\nbatching off")
    return hashlib.sha256(key.encode()).hexdigest(), request.hexdigest()


async def _accept(
    gateway: Gateway,
    job: Job,
    payload: bytes,
    limits: Admission,
    idempotency: tuple[str, str] | None,
    *,
    model_ready: bool,
    batching: bool,
    recent: Recent | None,
) -> Submitted:
    state = gateway.state
    await state.results.put_payload(job.id, payload)
    try:
        submitted = await state.queue.submit(
            job,
            waiting_jobs=limits.waiting_jobs,
            running_jobs=limits.running_jobs,
            kept_jobs=limits.kept_jobs,
            model_ready=model_ready,
            idempotency=idempotency,
            batching=batching,
            recent=recent,
        )
    except (InterlaceError, ModelChanged):
        await state.results.delete_payload(job.id)
        raise
    if submitted.replayed:
        await state.results.delete_payload(job.id)
        log.info("replayed", job=submitted.job_id, model=str(job.model))
        return submitted
    metrics.accepted(str(job.model), job.payload_bytes)
    log.info("accepted", job=job.id, model=str(job.model), payload_bytes=job.payload_bytes, place=submitted.place)
    return submitted


def _note(gateway: Gateway, caller: Caller, job: Job, payload: bytes, request: Request) -> None:
    gateway.state.audit.write(
        "accepted",
        tenant=caller.tenant,
        key=caller.key_id,
        job=job.id,
        model=str(job.model),
        payload_bytes=job.payload_bytes,
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        address=request.client.host if request.client else None,
    )
