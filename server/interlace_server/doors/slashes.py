"""Forgives a server's URL that was written with a slash at its end: clients make `http://HOST:8000//request` of it."""

from starlette.types import ASGIApp, Receive, Scope, Send


class Slashes:
    """Makes one slash of those that a path begins with, before any other door looks at it: ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path", "").startswith("//"):
            raw = scope.get("raw_path") or scope["path"].encode()
            scope = {**scope, "path": "/" + scope["path"].lstrip("/"), "raw_path": b"/" + raw.lstrip(b"/")}
        await self._app(scope, receive, send)
