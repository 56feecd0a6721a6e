"""Errors as HTTP: always ``{"detail": sentence}``, because stock nnsight shows ``detail`` and nothing else."""

import secrets
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Scope

from interlace.protocol.errors import Forbidden, InterlaceError, LimitExceeded
from interlace.protocol.ids import ARTIFACT_ID, JOB_ID
from interlace_server.gateway import gateway_of
from interlace_state import log
from interlace_state.audit import Audit

REDIS_DOWN = "The server cannot reach its job queue (Redis) at the moment. Please try again in a minute."


class Problem(BaseModel):
    """What went wrong, in one sentence."""

    detail: str


#: What a field takes that stands for an id, by its pattern.
_IDS = {
    f"^{JOB_ID}$": "32 hex digits, as `interlace jobs` shows them",
    f"^{ARTIFACT_ID}$": "16 hex digits, as `interlace lake search` shows them",
}
#: OpenAPI's ``responses`` for the statuses that a route can refuse with.
Responses = dict[int | str, dict[str, Any]]


def refusals(*statuses: int) -> Responses:
    return {status: {"model": Problem} for status in statuses}


def describe(problems: Sequence[Any], of: str) -> str:
    """Pydantic's list of problems as one sentence that names each field."""
    return f"{of} is not valid: " + "; ".join(map(_describe, problems)) + "."


def _describe(problem: dict[str, Any]) -> str:
    if problem["type"] == "json_invalid" and len(problem["loc"]) > 1:  # FastAPI's; pydantic's own says where in words
        return f"it is no JSON, at character {problem['loc'][-1]}: {problem['ctx']['error']}"
    field = ".".join(str(part) for part in problem["loc"] if part not in ("body", "path", "query", "header"))
    message = problem["msg"]
    if problem["type"] == "string_pattern_mismatch" and (takes := _IDS.get(problem["ctx"]["pattern"])):
        message = f"{problem['input'][:80]!r} is no id: {takes}"
    return f"`{field}`: {message[:1].lower()}{message[1:]}" if field else message


def answer(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status)


def refusal(error: InterlaceError) -> JSONResponse:
    """One of our errors as an answer."""
    response = answer(error.http_status, str(error))
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def note(audit: Audit, scope: Scope, why: str) -> None:
    """Put a refusal into the audit log."""
    address = (scope.get("client") or ("",))[0]
    caller = scope.get("state", {}).get("caller")
    who = {} if caller is None else {"tenant": caller.tenant, "key": caller.key_id}
    with log.instead_of(OSError, "audit_failed"):
        audit.refuse(why=why, path=scope["path"][:80], address=address, **who)


def unexpected(error: Exception, where: str) -> str:
    """Log an error that nobody foresaw; returns the sentence for the user, which names the log's entry."""
    number = secrets.token_hex(4)
    log.failure("failed", error, where=where, number=number)
    return f"Something went wrong inside the server; its operator finds it in the gateway's log as number {number}."


def install(app: FastAPI) -> None:
    """Answer our errors, Redis's, a wrong field, what is no text and the unforeseen in this one form."""
    app.add_exception_handler(InterlaceError, _interlace_error)
    app.add_exception_handler(RedisError, _redis_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(UnicodeEncodeError, _no_text)
    app.add_exception_handler(PydanticSerializationError, _no_text)
    app.add_exception_handler(Exception, _unexpected)


async def _interlace_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InterlaceError)
    if isinstance(error, (LimitExceeded, Forbidden)):
        note(gateway_of(request).state.audit, request.scope, error.code)
    return refusal(error)


async def _redis_error(request: Request, error: Exception) -> JSONResponse:
    log.warning("redis_failed", path=request.url.path, error=str(error))
    return answer(503, REDIS_DOWN)


async def _validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return answer(422, describe(error.errors(), "The request"))


async def _no_text(request: Request, error: Exception) -> JSONResponse:
    """JSON can say what no UTF-8 can: `"\\ud800"`. It shows where the text is written on."""
    if "surrogates not allowed" not in str(error):
        return await _unexpected(request, error)
    return answer(422, "The request is not valid: it holds half of a surrogate pair, such as `\\ud800`: no character.")


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return answer(500, unexpected(error, request.url.path))
