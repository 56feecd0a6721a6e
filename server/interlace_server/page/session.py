"""Signing in with an API key, and out. A server without keys needs neither."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from interlace_server.doors import visitors
from interlace_server.errors import note
from interlace_server.gateway import TheGateway
from interlace_server.page.frame import PageRoute, keep_visit, page, saying
from interlace_state import log

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_LONGEST = 256  # characters of a key
_Back = Annotated[str, Query(max_length=2048)]
saying(signed_out="You have signed out.")


@router.get(visitors.SIGN_IN)
async def sign_in_form(request: Request, gateway: TheGateway, back: _Back = "/") -> Response:
    """The form; who needs no key goes on at once."""
    if not gateway.config.exposed and not await gateway.state.tenants.any():
        return RedirectResponse(_way(back), 303)
    return page(request, "sign_in.html", back=_way(back))


@router.get("/page/signed-in")
async def signed_in(request: Request, gateway: TheGateway, back: _Back = "/") -> Response:
    """Somebody who came over a link of another site brings no cookie with the first request, but does with this one."""
    if await gateway.state.visits.find(request.scope["state"]["visit"]) is None:
        return Response(status_code=204)
    return Response(status_code=204, headers={"HX-Redirect": _way(back)})


@router.post(visitors.SIGN_IN)
async def sign_in(
    request: Request,
    gateway: TheGateway,
    key: Annotated[str, Form(max_length=4096)] = "",
    back: Annotated[str, Form(max_length=2048)] = "/",
) -> Response:
    secret = key.strip()
    seconds = gateway.config.page.session_seconds
    visit = await gateway.state.visits.open(secret, seconds) if 0 < len(secret) <= _LONGEST else None
    if visit is None:
        note(gateway.state.audit, request.scope, "unauthorized")
        wrong = "This server knows no such key: it was mistyped, has ended, or was revoked."
        return page(request, "sign_in.html", 401, back=_way(back), wrong=wrong)
    await gateway.state.visits.close(request.scope["state"]["visit"])
    found = await gateway.state.visits.find(visit)
    with log.instead_of(OSError, "audit_failed"):
        gateway.state.audit.write("signed in", tenant=found and found.tenant, key=found and found.id)
    response = RedirectResponse(_way(back), 303)
    keep_visit(request, response, visit, seconds)
    return response


@router.post("/page/sign-out")
async def sign_out(request: Request, gateway: TheGateway) -> Response:
    await gateway.state.visits.close(request.scope["state"]["visit"])
    response = RedirectResponse(f"{visitors.SIGN_IN}?done=signed_out", 303)
    response.delete_cookie(visitors.COOKIE, path="/", httponly=True, samesite="strict")
    return response


def _way(back: str) -> str:
    return back if visitors.is_way_back(back) else "/"
