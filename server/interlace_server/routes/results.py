"""`GET /results/{token}`: a result's bytes for whoever holds the signed link; stock nnsight sends no key here."""

from functools import partial

from fastapi import APIRouter
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response, StreamingResponse

from interlace_server import metrics
from interlace_server.delivery import BYTES, deliver
from interlace_server.errors import refusals
from interlace_server.gateway import Gateway, TheGateway

router = APIRouter(tags=["nnsight"])


async def result_url(gateway: Gateway, connection: HTTPConnection, job_id: str) -> str:
    """A link to a result that works until `lifetimes.result_url` is over."""
    return f"{gateway.public_url(connection)}/results/{await gateway.state.results.sign(job_id)}"


@router.get("/results/{token}", response_class=StreamingResponse, responses=BYTES | refusals(404, 422, 503))
async def result(token: str, request: Request, gateway: TheGateway) -> Response:
    """Stream a result; `Range` fetches the rest of one that broke off."""
    job_id = await gateway.state.results.verify(token)
    return await deliver(gateway, request, job_id, partial(metrics.delivered, "link"))
