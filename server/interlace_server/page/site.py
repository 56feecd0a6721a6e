"""All pages together: a page is a file here with a `router` and, if the navigation names it, a `NAV`."""

from types import ModuleType

from fastapi import APIRouter, FastAPI, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.responses import Response

from interlace import __version__
from interlace.protocol.lake import plain
from interlace_server.page import (
    admin,
    admin_audit,
    admin_tenants,
    following,
    home,
    jobs,
    keys,
    lake,
    playground,
    session,
    static_files,
    words,
)
from interlace_server.page.curves import curves
from interlace_server.page.frame import PageRoute, Site

#: A new page is one word here.
PAGES: tuple[ModuleType, ...] = (
    home,
    playground,
    following,  # before the jobs, whose ids its path would be
    jobs,
    lake,
    keys,
    admin,
    admin_tenants,
    admin_audit,
    session,
    static_files,
)

_rest = APIRouter(route_class=PageRoute, include_in_schema=False)


@_rest.get("/page/{path:path}")
async def nothing(request: Request) -> Response:
    raise HTTPException(404, "There is no such page.")


def install(app: FastAPI) -> None:
    """Serve them, at `/` and below `/page/`."""
    templates = Environment(
        loader=PackageLoader("interlace_server.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {"static": static_files.address, "version": __version__}
    templates.filters |= {
        name: getattr(words, name) for name in ("moment", "machine_moment", "duration", "size", "number")
    }
    templates.filters["plain"] = plain
    templates.filters["curves"] = curves
    entries = [module.NAV for module in PAGES if hasattr(module, "NAV")]
    app.state.site = Site(templates, tuple(sorted(entries, key=lambda one: one.order)))
    for module in PAGES:
        app.include_router(module.router)
    app.include_router(_rest)
