"""Who asks: an API key becomes a caller. On loopback nobody needs one, until the first is made."""

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
from interlace_state.entrance import Guest
from interlace_state.models import HostedModel
from interlace_state.settings.limits import Admission
from interlace_state.store import State

LOCAL = "local"
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        known = scope.setdefault("state", {})
        try:
            if visitors.is_page(scope["path"]):
                await self._visit(scope, known)
            elif _is_open(scope["path"]):
                if _shows_models(scope["path"]) and (secret := _secret(Headers(scope=scope))):
                    guest = await self._state.entrance.enter(secret, counts=False)
                    known["viewer"] = _caller_with(guest) if guest else None
            else:
                await self._enter(_secret(Headers(scope=scope)), known)
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

    async def _enter(self, secret: str, known: dict[str, Any]) -> None:
        """Find out who asks. Raises Unauthorized, RedisError; TooMany of whoever is known by then."""
        guest = await self._state.entrance.enter(secret, keyless=None if self._config.exposed else LOCAL)
        if guest is None:
            raise Unauthorized
        known["caller"] = _caller_with(guest)
        if guest.wait:
            most = guest.limits.requests_per_minute
            raise TooMany("Requests in a minute", most, "requests", "limits.requests_per_minute", guest.wait)

    async def _visit(self, scope: Scope, known: dict[str, Any]) -> None:
        """A page's visitor is whoever has signed in, by a cookie. Raises as `_enter`.

        ``form_id`` is what the tokens of its forms are made of; a fresh one has yet to be given to the browser.
        """
        headers = Headers(scope=scope)
        known["visit"] = visit_id = visitors.id_in(headers)
        form_id = visitors.id_in(headers, visitors.FORM_COOKIE)
        known["form_id"], known["is_fresh"] = form_id or visitors.fresh_id(), not form_id
        if visitors.is_open(scope["path"]):
            return
        secret = await self._state.visits.secret(visit_id) if visit_id else None
        await self._enter(secret or "", known)
        if known["caller"].key_id is not None:
            known["form_id"], known["is_fresh"] = visit_id, False

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        if isinstance(error, InterlaceError):
            await refusal(error)(scope, receive, send)
        else:
            log.warning("redis_failed", path=scope["path"], error=str(error))
            await answer(503, REDIS_DOWN)(scope, receive, send)


def _caller_with(guest: Guest) -> Caller:
    if (key := guest.key) is None:
        return Caller(LOCAL, "admin", guest.limits)
    return Caller(key.tenant, key.role, guest.limits, key.id, key.models)


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
