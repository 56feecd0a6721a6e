"""What is let in: bounds on a request's bytes, its client's age, its payload's form. Nothing is unpacked here."""

import asyncio
import re
import struct
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interlace.protocol.artifact import edits_of, read_of, wanted
from interlace.protocol.errors import (
    ClientTooOld,
    InterlaceError,
    InvalidPayload,
    InvalidRequest,
    LimitExceeded,
    ShuttingDown,
)
from interlace_server.doors import visitors
from interlace_server.doors.connections import SLOWEST
from interlace_server.drain import Drain
from interlace_server.errors import note, refusal
from interlace_state.config import Config
from interlace_state.settings.gateway import GatewayConfig
from interlace_state.settings.limits import Admission as Limits
from interlace_state.store import State

_FORM_BYTES = 64 << 10  # what a form has around its files
_SMALL = 1 << 20  # bytes up to which a body stays in memory
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_ENV = frozenset({"artifacts", "attn_implementation", "edits", "lora", "peft"})
_NNSIGHT_VERSION = re.compile(r"v?(\d+(?:\.\d+){1,3})(?:[.\-_+]?[A-Za-z][\w.+-]*|\+[\w.]+)?")
_PYTHON_VERSION = re.compile(r"(\d+\.\d+)(?:\.\d+)?\S*(?:\s.*)?", re.DOTALL)


class Door:
    """Refuses a request before its body is read, or while it is: ASGI middleware."""

    def __init__(self, app: ASGIApp, config: Config, drain: Drain, state: State) -> None:
        self._app = app
        self._config = config
        self._drain = drain
        self._results = state.results
        self._audit = state.audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            where = scope["path"].rstrip("/") if scope["method"] == "POST" else ""
            if where.endswith(("/request", "/v1/jobs")) and self._drain.refusing:
                raise ShuttingDown
            if where.endswith("/request"):
                check_client(headers, self._config.gateway)
            body = Body(receive, *self._most_bytes(scope), self._config.gateway.stall_seconds)
            body.check(headers)
            if (size := _size(headers)) > _SMALL:  # it waits for its end on the disk of the store
                self._results.make_sure_of_disk(size)
        except InterlaceError as error:
            if isinstance(error, LimitExceeded):
                note(self._audit, scope, error.code)
            await refusal(error)(scope, receive, send)
            return
        await self._app(scope, body.receive, send)
        if body.too_large:
            note(self._audit, scope, LimitExceeded.code)

    def _most_bytes(self, scope: Scope) -> tuple[int, str]:
        """How long a body may be, and which limit says so."""
        caller = scope.get("state", {}).get("caller")
        limits = caller.limits if caller else self._config.limits
        if scope["path"].rstrip("/") == "/v1/artifacts":
            return int(limits.artifact_bytes) + _FORM_BYTES, "limits.artifact_bytes"
        if scope["path"].rstrip("/") == "/v1/jobs" or visitors.is_page(scope["path"]):
            return self._config.methods.request_bytes, "methods.request_bytes"
        return int(limits.payload_bytes), "limits.payload_bytes"


class Body:
    """A request's body with a bound on its bytes, and on the time that they take."""

    def __init__(self, receive: Receive, limit: int, setting: str, stall_seconds: float) -> None:
        self.too_large = False
        self._receive = receive
        self._limit = limit
        self._setting = setting
        self._stall_seconds = stall_seconds
        self._received = 0
        self._began: float | None = None
        self._ended = False

    def check(self, headers: Headers) -> None:
        """Raises LimitExceeded for a body that says it is too long."""
        if _size(headers) > self._limit:
            raise self._over()

    async def receive(self) -> Message:
        """Raises HTTPException: FastAPI turns any other exception of a body that it reads into a 400."""
        if self._ended:
            return await self._receive()  # which comes when the client has gone: an answer may take its time
        try:
            async with asyncio.timeout(self._patience()):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(
                408,
                f"The request's body came too slowly: nothing for {self._stall_seconds:g} seconds, or less than "
                f"{SLOWEST} bytes a second. The operator can allow more: `gateway.stall_seconds` in the configuration.",
            ) from None
        self._received += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self._received > self._limit:
            self.too_large = True
            raise HTTPException(LimitExceeded.http_status, str(self._over()))
        return message

    def _patience(self) -> float:
        """Seconds that the next piece may take."""
        now = asyncio.get_running_loop().time()
        self._began = now if self._began is None else self._began
        due = self._began + self._stall_seconds + self._received / SLOWEST
        return min(self._stall_seconds, due - now)

    def _over(self) -> LimitExceeded:
        return LimitExceeded("The request's body", self._limit, "bytes", self._setting)


def _size(headers: Headers) -> int:
    """Bytes that a body says it has; 0 where it does not."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


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
    """Raises InvalidRequest for a model environment that no model has."""
    unknown = sorted(set(env) - _ENV)
    if unknown:
        raise InvalidRequest(f"`env` has unknown keys {unknown}; allowed are: {', '.join(sorted(_ENV))}.")
    wanted(env)
    edits_of(env)
    read_of(env)
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
