"""What all pages stand in: their route, the templates' frame, the forms' token, errors as a page."""

import hashlib
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from interlace.protocol.errors import Forbidden, InterlaceError, LimitExceeded
from interlace_server.doors import visitors
from interlace_server.doors.auth import Caller
from interlace_server.errors import REDIS_DOWN, note, unexpected, unfit
from interlace_server.gateway import gateway_of
from interlace_state import log

_TOKEN_HEADER = "x-form-token"
_TOKEN_FIELD = "form_token"
_READS = frozenset({"GET", "HEAD"})
#: What a page says at its top when it is shown after something was done: `?done=NAME`.
_DONE: dict[str, str] = {}


@dataclass(frozen=True)
class Nav:
    """An entry of the navigation."""

    path: str
    label: str
    #: Smaller ones come first.
    order: int
    admin: bool = False


@dataclass(frozen=True)
class Site:
    """The templates, and the entries of the navigation."""

    templates: Environment
    navigation: tuple[Nav, ...]


class PageRoute(APIRoute):
    """A page's route: what it refuses is a page, too, and what changes something carries a form's token."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                if request.method not in _READS:
                    await _check_form(request)
                response = await handle(request)
            except (InterlaceError, RedisError, RequestValidationError, HTTPException) as error:
                response = _refusal(request, error)
            except Exception as error:  # noqa: BLE001  the page's edge: logged there, and a number for the user
                response = problem(request, 500, unexpected(error, request.url.path))
            return _known_again(request, response)

        return handler


def saying(**sentences: str) -> None:
    """Add to what pages say after something was done, by name: `done(path, name)`."""
    _DONE.update(sentences)


def done(path: str, name: str = "") -> Response:
    """After a form: the browser goes on to a page, which says what was done."""
    assert not name or name in _DONE, name
    return RedirectResponse(path + (("&" if "?" in path else "?") + f"done={name}" if name else ""), 303)


def page(request: Request, template: str, /, status: int = 200, **values: Any) -> HTMLResponse:
    """A template with the frame's values: `caller`, `navigation`, `here`, `form_token`, `said`."""
    site = cast(Site, request.app.state.site)
    caller: Caller | None = request.scope["state"].get("caller")
    entries = [one for one in site.navigation if caller and (caller.role == "admin" or not one.admin)]
    token = visitors.form_token(request.scope["state"]["form_id"])
    frame = {
        "caller": caller,
        "navigation": entries,
        "here": _here(request.url.path, entries),
        "form_token": token,
        "headers": json.dumps({_TOKEN_HEADER: token}),
        "said": _DONE.get(request.query_params.get("done", ""), ""),
        "is_part": bool(request.headers.get("hx-request")),
    }
    return HTMLResponse(site.templates.get_template(template).render(frame | values), status)


def digest(*shown: object) -> str:
    """What stands for all that a part of a page shows: the same for the same."""
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:16]


def part(request: Request, template: str, seen: str, **values: Any) -> Response:
    """A part of a page that is asked for again and again, with its `digest`; nothing where the reader has seen that.

    So it is not swapped under somebody who reads it, selects in it or has it read out.
    """
    if request.query_params.get("seen") == seen:
        return Response(status_code=204)
    return page(request, template, seen=seen, **values)


def problem(request: Request, status: int, sentence: str) -> HTMLResponse:
    """What went wrong, in one sentence; for htmx, which puts it at the page's top, the sentence alone."""
    name = "_problem.html" if request.headers.get("hx-request") else "problem.html"
    return page(request, name, status, sentence=sentence, number=status)


def _refusal(request: Request, error: Exception) -> Response:
    if isinstance(error, InterlaceError):
        if isinstance(error, LimitExceeded | Forbidden):
            note(gateway_of(request).state.audit, request.scope, error.code)
        response: Response = problem(request, error.http_status, str(error))
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(error.retry_after)
        return response
    if isinstance(error, RequestValidationError):
        return problem(request, 422, unfit(request, error))
    if isinstance(error, HTTPException):
        return problem(request, error.status_code, str(error.detail))
    log.warning("redis_failed", path=request.url.path, error=str(error))
    return problem(request, 503, REDIS_DOWN)


async def _check_form(request: Request) -> None:
    """Raises Forbidden for what no form of ours has sent. `doors.origins` has refused other sites by their name."""
    headers = request.headers
    named = headers.get("origin", "") not in ("", "null") or headers.get("sec-fetch-site") == "same-origin"
    token = headers.get(_TOKEN_HEADER)
    if token is None and "form" in headers.get("content-type", ""):
        token = str((await request.form()).get(_TOKEN_FIELD, ""))
    if not named or not visitors.is_token(request.scope["state"]["form_id"], token or ""):
        raise Forbidden("This form is not from this page, or you have signed in anew since: go back and load it again.")


def _known_again(request: Request, response: Response) -> Response:
    """Give a browser without an id the one that its forms' token is made of."""
    if request.scope["state"]["is_fresh"]:
        # Lax: over a link from elsewhere it comes along, so that forms which are open stay good.
        _keep(request, response, visitors.FORM_COOKIE, request.scope["state"]["form_id"], "lax")
    return response


def keep_visit(request: Request, response: Response, visit_id: str, seconds: int) -> None:
    """Put a visit's id into the browser's cookie, which no script reads and no other site has it send."""
    _keep(request, response, visitors.COOKIE, visit_id, "strict", seconds)


def _keep(
    request: Request,
    response: Response,
    name: str,
    value: str,
    same_site: Literal["lax", "strict"],
    seconds: int | None = None,
) -> None:
    is_https = urlsplit(gateway_of(request).public_url(request)).scheme == "https"
    response.set_cookie(name, value, max_age=seconds, path="/", httponly=True, samesite=same_site, secure=is_https)


def _here(path: str, entries: list[Nav]) -> str:
    """The path of the entry that a page belongs to."""
    found = [one.path for one in entries if path == one.path or path.startswith(one.path.rstrip("/") + "/")]
    return max(found, key=len, default="")
