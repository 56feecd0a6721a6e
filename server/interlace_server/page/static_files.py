"""The pages' own files, read once; their addresses change with what is in them, so that browsers may keep them."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from interlace_server.page.frame import PageRoute

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FOR_GOOD = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class _File:
    data: bytes
    media_type: str
    digest: str


@cache
def _files() -> dict[str, _File]:
    found = {}
    for entry in resources.files("interlace_server.page").joinpath("static").iterdir():
        kind = _TYPES.get(entry.name[entry.name.rfind(".") :])
        if kind is not None:
            data = entry.read_bytes()
            found[entry.name] = _File(data, kind, hashlib.sha256(data).hexdigest()[:12])
    return found


def address(name: str) -> str:
    """Where a file is had."""
    return f"/page/static/{name}?v={_files()[name].digest}"


@router.get("/page/static/{name}")
async def static_file(name: str, request: Request) -> Response:
    file = _files().get(name)
    if file is None:
        raise HTTPException(404, f"There is no file {name[:80]}.")
    kept = _FOR_GOOD if request.query_params.get("v") == file.digest else "no-cache"
    headers = {"Cache-Control": kept, "ETag": f'"{file.digest}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.media_type, headers=headers)
