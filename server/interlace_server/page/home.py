"""`/`: what is hosted and how it stands."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from interlace_server.page.frame import Nav, PageRoute, page

NAV = Nav("/", "Home", 0)
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/")
async def home(request: Request) -> Response:
    return page(request, "home.html")
