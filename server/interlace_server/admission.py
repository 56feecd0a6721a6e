"""What is let in: bounds on a request's bytes, its client's age, its payload's form. Nothing is unpacked here."""

import asyncio
import re
import struct
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interlace.protocol.errors import (
    ClientTooOld,
    InterlaceError,
    InvalidPayload,
    InvalidRequest,
    LimitExceeded,
    ShuttingDown,
)
from interlace_server.drain import Drain
from interlace_server.errors import answer
from interlace_state.config import Admission as Limits
from interlace_state.config import Config, GatewayConfig

_SILENCE = 60.0  # seconds that a client may leave us waiting in the middle of its request
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_NNSIGHT_VERSION = re.compile(r"v?(\d+(?:\.\d+){1,3})(?:[.\-_+]?[A-Za-z][\w.+-]*|\+[\w.]+)?")
_PYTHON_VERSION = re.compile(r"(\d+\.\d+)(?:\.\d+)?\S*(?:\s.*)?", re.DOTALL)


class Door:
    """Refuses a request before its body is read, or while it is: ASGI middleware."""

    def __init__(self, app: ASGIApp, config: Config, drain: Drain) -> None:
        self._app = app
        self._config = config
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/request"):
                if self._drain.refusing:
                    raise ShuttingDown
                check_client(headers, self._config.gateway)
            bounded = _bounded(receive, headers, self._most_bytes(scope))
        except InterlaceError as error:
            await answer(error.http_status, str(error))(scope, receive, send)
            return
        await self._app(scope, bounded, send)

    def _most_bytes(self, scope: Scope) -> int:
        caller = scope.get("state", {}).get("caller")
        limits = self._config.limits_of(caller.tenant, caller.role) if caller else self._config.limits
        return limits.payload_bytes


def _bounded(receive: Receive, headers: Headers, limit: int) -> Receive:
    """``receive`` with a bound on the body's bytes. Raises LimitExceeded for a body that says it is longer."""
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    received = 0

    async def bounded() -> Message:
        nonlocal received
        try:
            async with asyncio.timeout(_SILENCE):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"Nothing of the request's body came for {_SILENCE:g} seconds.") from None
        received += len(message.get("body", b""))
        if received > limit:
            # FastAPI turns any other exception of a body that it reads into a 400.
            raise HTTPException(LimitExceeded.http_status, str(_too_large(limit)))
        return message

    return bounded


def _too_large(limit: int) -> LimitExceeded:
    return LimitExceeded("The request's body", limit, "bytes", "limits.payload_bytes")


def check_client(headers: Headers, config: GatewayConfig) -> None:
    """Raises ClientTooOld unless the client says that its nnsight and Python are new enough."""
    _check_version("nnsight", headers.get("nnsight-version"), _NNSIGHT_VERSION, config.min_nnsight)
    _check_version("Python", headers.get("python-version"), _PYTHON_VERSION, config.min_python)


def _check_version(what: str, said: str | None, form: re.Pattern[str], oldest: str) -> None:
    upgrade = "`pip install --upgrade nnsight`" if what == "nnsight" else f"use Python {oldest} or newer"
    header = f"{what.lower()}-version"
    if not said:
        raise ClientTooOld(f"The request does not say its {what} version (header `{header}`): {upgrade}.")
    match = form.fullmatch(said[:256].strip())
    if match is None:
        raise ClientTooOld(f"The header `{header}` is {said[:64]!r}, which is no version: {upgrade}.")
    if _numbers(match[1]) < _numbers(oldest):
        raise ClientTooOld(f"This server needs {what} {oldest} or newer and the client has {match[1]}: {upgrade}.")


def _numbers(version: str) -> list[int]:
    numbers = [int(part) for part in version.split(".")]
    return numbers + [0] * (4 - len(numbers))


def check_env(env: dict[str, Any]) -> None:
    """Raises InvalidRequest for a model environment that is not served."""
    unknown = sorted(set(env) - {"attn_implementation", "peft"})
    if unknown:
        raise InvalidRequest(f"`env` has unknown keys {unknown}; allowed are: attn_implementation, peft.")
    if env.get("peft") is not None:
        raise InvalidRequest(
            "`env.peft` names an adapter, and this server does not serve adapters yet: "
            "trace the model without `peft=`, or apply the change inside the trace."
        )
    attention = env.get("attn_implementation")
    if not (attention is None or isinstance(attention, str)) or attention not in _ATTENTION:
        allowed = ", ".join("null" if name is None else name for name in _ATTENTION)
        raise InvalidRequest(f"`env.attn_implementation` is {str(attention)[:64]!r}; allowed are: {allowed}.")


def check_payload(payload: bytes, *, compress: bool, limits: Limits) -> None:
    """Look at a payload's first bytes. Raises InvalidPayload, or LimitExceeded if it says that it unpacks to more."""
    if not payload:
        raise InvalidPayload("The payload (`blob`) is empty; expected a serialized nnsight trace.")
    if compress:
        size = _unpacked_bytes(payload)
    elif payload[0] == 0x80 and len(payload) > 1 and 2 <= payload[1] <= 5:
        size = len(payload)
    else:
        hint = " It is a zstd frame: say `compress: true`." if payload.startswith(_ZSTD_MAGIC) else ""
        raise InvalidPayload(f"The payload (`blob`) is not a serialized nnsight trace.{hint}")
    if size > limits.unpacked_bytes:
        raise LimitExceeded("The unpacked payload", limits.unpacked_bytes, "bytes", "limits.unpacked_bytes")


def _unpacked_bytes(frame: bytes) -> int:
    """The content size that a zstd frame's header states (RFC 8878, 3.1.1.1)."""
    if not frame.startswith(_ZSTD_MAGIC) or len(frame) < 6:
        raise InvalidPayload("The payload (`blob`) is not a zstd frame, although the request says `compress: true`.")
    descriptor = frame[4]
    single_segment = descriptor >> 5 & 1
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    field = frame[start : start + width]
    if width == 0 or len(field) < width:
        raise InvalidPayload("The payload's zstd frame does not state its content size; compress it in one call.")
    (size,) = struct.unpack("<Q", field.ljust(8, b"\0"))
    return int(size) + (256 if width == 2 else 0)
