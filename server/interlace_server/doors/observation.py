"""What is noted of every request: an id that its answer and all its log lines carry, its count, its time, its span."""

import re
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interlace_server import metrics
from interlace_state import log
from interlace_state.tracing import Span, Tracing, checked

_HEADER = "X-Request-ID"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_STARTS = frozenset({"http.response.start", "websocket.accept"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Observation:
    """The first that a request meets: ASGI middleware."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        span = self._span(scope, checked(headers.get("traceparent", "")))
        scope.setdefault("state", {})["origin"] = {"request_id": request_id, "traceparent": span.traceparent}
        # For good: an error that nobody foresaw is logged further out than this.
        log.bind(request_id=request_id)
        status, began = "none", time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] in _STARTS:
                message.setdefault("headers", [])
                MutableHeaders(scope=message).append(_HEADER, request_id)
                status = str(message.get("status", 101))
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            status = "500"
            raise
        finally:
            _count(scope, status, time.perf_counter() - began)
            span.end(error="" if status < "400" else f"answered with {status}", status=status, request_id=request_id)

    def _span(self, scope: Scope, parent: str) -> Span:
        """The request that brings a job has one."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in ("/request", "/v1/jobs"):
            return self._tracing.begin("submit", parent, kind="SERVER")
        return Span(parent)


def origin_of(connection: HTTPConnection) -> dict[str, str]:
    """What a job carries of the request that brought it: its id and its trace, as fields of `Job`."""
    found: dict[str, str] = connection.scope["state"]["origin"]
    return found


def _request_id(headers: Headers) -> str:
    """The client's own, or a new one."""
    own = headers.get(_HEADER, "")
    return own if _ID.fullmatch(own) else uuid.uuid4().hex


def _count(scope: Scope, status: str, seconds: float) -> None:
    route = _template(scope)
    method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
    method = method if method in _METHODS or method == "WEBSOCKET" else "other"
    metrics.REQUESTS.labels(route, method, status).inc()
    if scope["type"] == "http":
        metrics.REQUEST_SECONDS.labels(route, method).observe(seconds)


def _routes(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes, those of included routers in place of these."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from [route] if inner is None else _routes(inner.routes)


def _template(scope: Scope) -> str:
    """The route's path with names in place of values; `unmatched` for the paths that strangers make up."""
    route: Any = scope.get("route")
    if route is None:  # refused before it was looked for
        matching = (one for one in _routes(scope["app"].routes) if one.matches(scope)[0] is not Match.NONE)
        route = next(matching, None)
    return str(getattr(route, "path", "unmatched"))
