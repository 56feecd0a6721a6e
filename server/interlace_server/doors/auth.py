"""Who asks: an API key becomes a caller. On loopback nobody needs one, until the first is made."""

import time
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends
from pydantic import BaseModel
from redis.exceptions import RedisError
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from interlace.protocol.errors import InterlaceError, TooMany, Unauthorized
from interlace_server.doors import visitors
from interlace_server.errors import REDIS_DOWN, answer, note, refusal
from interlace_state import log
from interlace_state.config import Config
from interlace_state.models import HostedModel
from interlace_state.settings.limits import Admission
from interlace_state.store import State
from interlace_state.tenants import ApiKey

LOCAL = "local"
_MINUTE = 60  # seconds
_LONGEST = 256  # characters of a key
#: What stock nnsight and transformers ask without a key, and what tells nothing of anybody's work. A result's link is
#: a secret in itself; `/hf` has the configurations and tokenizers of what is hosted.
_OPEN = frozenset({"/ping", "/connected", "/healthz", "/readyz", "/status", "/env", "/openapi.json"})
_OPEN_FOLDERS = ("/results/", "/hf/")
#: Of these, what shows hosted models: a key that is sent all the same narrows it down to the key's models.
_SHOWN = frozenset({"/status", "/readyz"})
_SHOWN_FOLDER = "/hf/"


@dataclass(frozen=True)
class Caller:
    """Whoever a request is from."""

    tenant: str
    role: str
    #: What holds for it now: the configuration's, and those that an operator has set since.
    limits: Admission
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
        self._minute = 0
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        known = scope.setdefault("state", {})
        try:
            if visitors.is_page(scope["path"]):
                await self._visit(scope, known)
            elif _is_open(scope["path"]):
                if _shows_models(scope["path"]) and (key := await self._key(_secret(Headers(scope=scope)))):
                    known["viewer"] = await self._caller_with(key)
            else:
                known["caller"] = await self._caller(_secret(Headers(scope=scope)))
                await self._check_rate(known["caller"])
        except (InterlaceError, RedisError) as error:
            if isinstance(error, InterlaceError) and not _is_visit(error, scope):
                note(self._state.audit, scope, error.code)
            if scope["type"] == "websocket":
                known["refusal"] = error  # stock nnsight needs a frame that says so
            elif _is_visit(error, scope):
                await visitors.to_sign_in(scope)(scope, receive, send)
            else:
                await self._refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _caller(self, secret: str) -> Caller:
        """Raises Unauthorized, RedisError."""
        if not self._config.exposed and (limits := await self._state.control.limits_without_keys(LOCAL, "admin")):
            return Caller(LOCAL, "admin", limits)
        if key := await self._key(secret):
            return await self._caller_with(key)
        raise Unauthorized

    async def _visit(self, scope: Scope, known: dict[str, Any]) -> None:
        """A page's visitor is whoever has signed in, by a cookie. Raises as `_caller` and `_check_rate`.

        ``form_id`` is what the tokens of its forms are made of; a fresh one has yet to be given to the browser.
        """
        headers = Headers(scope=scope)
        known["visit"] = visit_id = visitors.id_in(headers)
        form_id = visitors.id_in(headers, visitors.FORM_COOKIE)
        known["form_id"], known["is_fresh"] = form_id or visitors.fresh_id(), not form_id
        if visitors.is_open(scope["path"]):
            return
        if not self._config.exposed and (limits := await self._state.control.limits_without_keys(LOCAL, "admin")):
            known["caller"] = Caller(LOCAL, "admin", limits)
        elif visit_id and (key := await self._state.visits.find(visit_id)):
            known["caller"] = await self._caller_with(key)
            known["form_id"], known["is_fresh"] = visit_id, False
        else:
            raise Unauthorized
        await self._check_rate(known["caller"])

    async def _check_rate(self, caller: Caller) -> None:
        """Raises TooMany, RedisError."""
        limit = caller.limits.requests_per_minute
        tenants = self._state.tenants
        if seconds := self._wait(limit) if caller.key_id is None else await tenants.wait(caller.tenant, limit):
            raise TooMany("Requests in a minute", limit, "requests", "limits.requests_per_minute", seconds)

    async def _caller_with(self, key: ApiKey) -> Caller:
        limits = await self._state.control.limits_of(key.tenant, key.role)
        return Caller(key.tenant, key.role, limits, key.id, key.models)

    def _wait(self, per_minute: int) -> int:
        """As `Tenants.wait`, for those without a key, of whom this gateway serves one machine's."""
        now = time.time()
        if (minute := int(now // _MINUTE)) != self._minute:
            self._minute, self._requests = minute, 0
        self._requests += 1
        return 0 if self._requests <= per_minute else max(1, int(_MINUTE - now % _MINUTE))

    async def _key(self, secret: str) -> ApiKey | None:
        return await self._state.tenants.find(secret) if 0 < len(secret) <= _LONGEST else None

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        if isinstance(error, InterlaceError):
            await refusal(error)(scope, receive, send)
        else:
            log.warning("redis_failed", path=scope["path"], error=str(error))
            await answer(503, REDIS_DOWN)(scope, receive, send)


def _secret(headers: Headers) -> str:
    """The key that is sent, in either of two headers; empty if none is."""
    said = headers.get("authorization", "")
    scheme, _, token = said.partition(" ")
    return headers.get("ndif-api-key") or (token.strip() if scheme.lower() == "bearer" else said)


def _is_visit(error: Exception, scope: Scope) -> bool:
    """Whether somebody looks at a page without having signed in, which is no refusal."""
    return isinstance(error, Unauthorized) and scope["type"] == "http" and visitors.is_page(scope["path"])


def _shows_models(path: str) -> bool:
    return path in _SHOWN or path.startswith(_SHOWN_FOLDER)


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


def visible(models: list[HostedModel], connection: HTTPConnection) -> list[HostedModel]:
    """Those of the hosted models that an open path shows: all, unless a key was sent that reaches some only."""
    viewer: Caller | None = connection.scope["state"].get("viewer")
    return [model for model in models if viewer is None or viewer.reaches(model.card.key.repo_id)]


def identity_of(caller: Caller) -> Identity:
    return Identity() if caller.key_id is None else Identity(email=caller.tenant, tags=[caller.role])


async def _caller_of(connection: HTTPConnection) -> Caller:
    """As `caller_of`, for FastAPI: it would call what is no coroutine in a thread."""
    return caller_of(connection)


TheCaller = Annotated[Caller, Depends(_caller_of)]
