"""`/page/admin/audit`: who did what, of the log on the gateway's machine."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from interlace_server.doors.auth import TheCaller
from interlace_server.gateway import TheGateway
from interlace_server.page.frame import PageRoute, page
from interlace_server.routes.admin import an_admin

router = APIRouter(
    prefix="/page/admin/audit", route_class=PageRoute, include_in_schema=False, dependencies=[Depends(an_admin)]
)

_MOST = 200  # lines
_FIRST = ("time", "action", "tenant", "key")


@router.get("")
async def audit(
    request: Request, caller: TheCaller, gateway: TheGateway, text: Annotated[str, Query(max_length=128)] = ""
) -> Response:
    lines = await asyncio.to_thread(gateway.state.audit.last, _MOST, text.strip())
    rows = [
        (
            {name: line.get(name) for name in _FIRST},
            ", ".join(f"{name} {value}" for name, value in line.items() if name not in _FIRST and value is not None),
        )
        for line in lines
    ]
    return page(request, "admin_audit.html", rows=rows, text=text, tab="audit")
