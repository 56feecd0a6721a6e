"""`/page/keys`: a tenant's keys, its limits, and what it has used of them."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from interlace.protocol.errors import InvalidRequest
from interlace_server.changes import note
from interlace_server.doors.auth import TheCaller
from interlace_server.gateway import TheGateway
from interlace_server.page.frame import Nav, PageRoute, keep_visit, page
from interlace_server.usage import usage_of
from interlace_state.tenants import KeyEnded

NAV = Nav("/page/keys", "Keys and usage", 40)
router = APIRouter(prefix="/page/keys", route_class=PageRoute, include_in_schema=False)

_OVERLAPS = {"0": 0.0, "1 h": 3600.0, "1 d": 86400.0, "7 d": 604800.0}


@router.get("")
async def keys(request: Request, caller: TheCaller, gateway: TheGateway) -> Response:
    own = [key for key in await gateway.state.tenants.all() if key.tenant == caller.tenant]
    usage = await usage_of(gateway, caller.tenant)
    limits = caller.limits.model_dump()
    return page(request, "keys.html", keys=own, usage=usage, limits=limits, overlaps=list(_OVERLAPS))


@router.post("/rotate")
async def rotate(
    request: Request, caller: TheCaller, gateway: TheGateway, overlap: Annotated[str, Form(max_length=8)] = "1 h"
) -> Response:
    """A new key in place of the one that the reader has signed in with: shown once, and signed in with from now on."""
    if caller.key_id is None or overlap not in _OVERLAPS:
        raise InvalidRequest("There is no key to rotate: this server asks for none, or `overlap` is not one of those.")
    try:
        made = await gateway.state.tenants.rotate(caller.key_id, _OVERLAPS[overlap])
    except KeyEnded as error:
        raise InvalidRequest(str(error)) from None
    if made is None:
        raise InvalidRequest(f"Key {caller.key_id} was revoked.")
    fresh, secret = made
    note(gateway, caller, "key rotated", made=fresh.id)
    response = page(request, "new_key.html", key=fresh, secret=secret, back="/page/keys", old=caller.key_id)
    seconds = gateway.config.page.session_seconds
    visit = await gateway.state.visits.open(secret, seconds)
    if visit is not None:
        await gateway.state.visits.close(request.scope["state"]["visit"])
        keep_visit(request, response, visit, seconds)
    return response
