"""Who asks: an API key becomes a caller. On loopback nobody needs one, until the first is made."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends
from pydantic import BaseModel
from redis.exceptions import RedisError
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from interlace.protocol.errors import InterlaceError, TooMany, Unauthorized
from interlace_server import log
from interlace_server.errors import REDIS_DOWN, answer, refusal
from interlace_state.config import Config
from interlace_state.store import State

LOCAL = "local"
_LONGEST = 256  # characters of a key
#: What stock nnsight and transformers ask without a key, and what tells nothing of anybody's work. A result's link is
#: a secret in itself; `/hf` has the configurations and tokenizers of what is hosted.
_OPEN = frozenset({"/ping", "/connected", "/healthz", "/readyz", "/status", "/env", "/openapi.json"})
_OPEN_FOLDERS = ("/results/", "/hf/")


@dataclass(frozen=True)
class Caller:
    """Whoever a request is from."""

    tenant: str
    role: str
    key_id: str | None = None
    #: Repo ids that it may use; None: all.
    models: tuple[str, ...] | None = None

    def reaches(self, repo_id: str) -> bool:
        return self.models is None or repo_id in self.models


class Authentication:
    """Finds out who asks before anything of a request is read, and holds each tenant to its rate: ASGI middleware."""

    def __init__(self, app: ASGIApp, config: Config, state: State) -> None:
        self._app = app
        self._config = config
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        known = scope.setdefault("state", {})
        try:
            known["caller"] = await self._caller(Headers(scope=scope))
        except (InterlaceError, RedisError) as error:
            if scope["type"] == "websocket":
                known["refusal"] = error  # stock nnsight needs a frame that says so
            else:
                await self._refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _caller(self, headers: Headers) -> Caller:
        """Raises Unauthorized, TooMany, RedisError."""
        secret = headers.get("ndif-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if not self._config.exposed and not await self._state.tenants.any():
            return Caller(LOCAL, "admin")
        key = await self._state.tenants.find(secret) if 0 < len(secret) <= _LONGEST else None
        if key is None:
            raise Unauthorized
        limit = self._config.limits_of(key.tenant, key.role).requests_per_minute
        if seconds := await self._state.tenants.wait(key.tenant, limit):
            raise TooMany("Requests in a minute", limit, "requests", "limits.requests_per_minute", seconds)
        return Caller(key.tenant, key.role, key.id, key.models)

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        if isinstance(error, InterlaceError):
            address = (scope.get("client") or ("",))[0]
            with log.instead_of(OSError, "audit_failed"):
                self._state.audit.refuse(why=error.code, path=scope["path"][:80], address=address)
            await refusal(error)(scope, receive, send)
        else:
            log.warning("redis_failed", path=scope["path"], error=str(error))
            await answer(503, REDIS_DOWN)(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_OPEN_FOLDERS)


class Identity(BaseModel):
    """What ``nnsight.whoami()`` shows."""

    email: str | None = None
    tags: list[str] = []


def caller_of(connection: HTTPConnection) -> Caller:
    """Who asks. Raises Unauthorized, RedisError as the middleware found."""
    if "refusal" in connection.scope["state"]:
        raise connection.scope["state"]["refusal"]
    return cast(Caller, connection.scope["state"]["caller"])


def identity_of(caller: Caller) -> Identity:
    return Identity() if caller.key_id is None else Identity(email=caller.tenant, tags=[caller.role])


TheCaller = Annotated[Caller, Depends(caller_of)]
