"""A result or a file on its way to whoever fetches it: whole, or the rest of what broke off (RFC 9110, section 14)."""

import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from interlace_server.errors import Responses, answer
from interlace_server.gateway import Gateway
from interlace_state.files import Piece

_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_RANGE_HEADER: dict[str, Any] = {
    "Content-Range": {"description": "`bytes FIRST-LAST/SIZE`", "schema": {"type": "string"}}
}


def described(what: str) -> Responses:
    """What a route says of itself that delivers bytes, or a part of them."""
    gone = {"type": "object", "properties": {"detail": {"type": "string"}}}
    return {
        200: {"description": f"All of its bytes. {what}", "content": _BINARY},
        206: {"description": "The bytes that `Range` asks for.", "content": _BINARY, "headers": _RANGE_HEADER},
        416: {"description": "There are no such bytes.", "content": {"application/json": {"schema": gone}}},
    }


BYTES = described("A result is what torch.save wrote, as one zstd frame if the request was.")


async def deliver(
    gateway: Gateway,
    request: Request,
    job_id: str,
    counted: Callable[[AsyncIterator[Piece], int], AsyncIterator[Piece]] = lambda pieces, _: pieces,
) -> Response:
    """Stream a result, or the part of it that the request asks for. Raises UnknownJob."""
    size, stream = await gateway.state.results.open(job_id)
    return deliver_part(request, size, stream, tag=job_id, what="result", counted=counted)


def deliver_part(
    request: Request,
    size: int,
    stream: Callable[[int, int], AsyncIterator[Piece]],
    *,
    tag: str,
    what: str,
    counted: Callable[[AsyncIterator[Piece], int], AsyncIterator[Piece]] = lambda pieces, _: pieces,
) -> Response:
    """Stream ``size`` bytes that never change, or the part of them that the request asks for."""
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{tag}"', "Cache-Control": "private, no-store"}
    asked = _asked(request, size, headers["ETag"])
    if asked is None:
        first, behind = 0, size
    else:
        first, behind = asked
        if first >= behind:
            refused = answer(416, f"The {what} has {size:,} bytes; expected `Range: bytes=FIRST-` below that.")
            refused.headers["Content-Range"] = f"bytes */{size}"
            return refused
        headers["Content-Range"] = f"bytes {first}-{behind - 1}/{size}"
    headers["Content-Length"] = str(behind - first)
    pieces = counted(stream(first, behind), behind - first)
    status = 200 if asked is None else 206
    return StreamingResponse(pieces, status, media_type="application/octet-stream", headers=headers)


def deliver_bytes(request: Request, data: bytes, *, tag: str, what: str) -> Response:
    """As `deliver_part`, of bytes that are at hand."""

    async def pieces(first: int, behind: int) -> AsyncIterator[Piece]:
        yield data[first:behind]

    return deliver_part(request, len(data), pieces, tag=tag, what=what)


def _asked(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """The first byte and the one behind the last that are asked for; None for all. What is no single range is none."""
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or request.headers.get("if-range", etag) != etag:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return max(0, size - int(suffix)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1 if last else size)
