"""Errors as HTTP: always ``{"detail": sentence}``, because stock nnsight shows ``detail`` and nothing else."""

import errno
import secrets
from typing import Any

from fastapi import FastAPI
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from interlace.protocol import fields
from interlace.protocol.errors import Forbidden, InterlaceError, LimitExceeded, StoreFull
from interlace_server.gateway import gateway_of
from interlace_state import log
from interlace_state.audit import Audit

REDIS_DOWN = "The server cannot reach its job queue (Redis) at the moment. Please try again in a minute."
#: How a disk says that nothing more goes onto it, or not so much in one file.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Problem(BaseModel):
    """What went wrong, in one sentence."""

    detail: str


#: OpenAPI's ``responses`` for the statuses that a route can refuse with.
Responses = dict[int | str, dict[str, Any]]


def refusals(*statuses: int) -> Responses:
    return {status: {"model": Problem} for status in statuses}


def describe(error: ValidationError, of: str, model: type[BaseModel]) -> str:
    """What is wrong with something that was to be a ``model``, and what would be right."""
    return f"{of} is not valid: {fields.wrong(error.errors(include_url=False), model=model)}"


def unfit(request: Request, error: RequestValidationError) -> str:
    """As `describe`, of a request; FastAPI says of each field first which part of the request it is in."""
    problems = error.errors()
    if problems[0]["type"] == "json_invalid":
        one = problems[0]
        return f"The request is not valid: it is no JSON, at character {one['loc'][-1]}: {one['ctx']['error']}."
    body_field = getattr(request.scope.get("route"), "body_field", None)
    model = body_field and body_field.field_info.annotation
    body = [one | {"loc": one["loc"][1:] or one["loc"]} for one in problems if one["loc"][0] == "body"]
    rest = [one | {"loc": one["loc"][1:]} for one in problems if one["loc"][0] != "body"]
    said = (fields.wrong(rest) if rest else "", fields.wrong(body, error.body, model) if body else "")
    return " ".join(("The request is not valid:", *filter(None, said)))


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
    """Answer our errors, Redis's, a full disk, a wrong field, what is no text and the unforeseen in this one form."""
    app.add_exception_handler(InterlaceError, _interlace_error)
    app.add_exception_handler(RedisError, _redis_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OSError, _os_error)
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


async def _http_error(request: Request, error: Exception) -> Response:
    """FastAPI says 400 whenever it could not read a body, also where the disk did not take an upload."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, OSError):
        return await _os_error(request, error.__cause__)
    return await http_exception_handler(request, error)


async def _os_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if error.errno not in _NO_ROOM:
        raise error
    log.warning("disk_full", path=request.url.path, error=str(error))
    return refusal(StoreFull(f"The server's store takes nothing: {error.strerror}."))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return answer(422, unfit(request, error))


async def _no_text(request: Request, error: Exception) -> JSONResponse:
    """JSON can say what no UTF-8 can: `"\\ud800"`. It shows where the text is written on."""
    if "surrogates not allowed" not in str(error):
        return await _unexpected(request, error)
    return answer(422, "The request is not valid: it holds half of a surrogate pair, such as `\\ud800`: no character.")


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return answer(500, unexpected(error, request.url.path))
