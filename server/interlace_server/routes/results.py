"""`GET /results/{token}`: a result's bytes for whoever holds the signed link; stock nnsight sends no key here."""

from fastapi import APIRouter
from starlette.requests import HTTPConnection
from starlette.responses import StreamingResponse

from interlace_server import metrics
from interlace_server.errors import Responses, refusals
from interlace_server.gateway import Gateway, TheGateway

router = APIRouter(tags=["nnsight"])

_BYTES: Responses = {
    200: {
        "description": "What torch.save wrote, as one zstd frame if the request was compressed.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


async def result_url(gateway: Gateway, connection: HTTPConnection, job_id: str) -> str:
    """A link to a result that works until `lifetimes.result_url` is over."""
    return f"{gateway.public_url(connection)}/results/{await gateway.state.results.sign(job_id)}"


@router.get("/results/{token}", response_class=StreamingResponse, responses={**_BYTES, **refusals(404, 422, 503)})
async def result(token: str, gateway: TheGateway) -> StreamingResponse:
    """Stream a result."""
    job_id = await gateway.state.results.verify(token)
    size, pieces = await gateway.state.results.open(job_id)
    headers = {"Content-Length": str(size), "Cache-Control": "private, no-store"}
    counted = metrics.delivered_by_link(pieces, size)
    return StreamingResponse(counted, media_type="application/octet-stream", headers=headers)
