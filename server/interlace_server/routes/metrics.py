"""For Prometheus: `GET /metrics` of this gateway, `GET /metrics/workers` of all replicas."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.exceptions import HTTPException
from starlette.responses import Response

from interlace_server import metrics
from interlace_server.doors.auth import TheCaller
from interlace_server.errors import Responses, refusals
from interlace_server.gateway import TheGateway

router = APIRouter(tags=["health"])

_TEXT: Responses = {
    200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


class Exposition(Response):
    media_type = metrics.CONTENT_TYPE


def _admin(caller: TheCaller) -> None:
    """To other keys these paths do not exist."""
    if caller.role != "admin":
        raise HTTPException(404)


Admin = Annotated[None, Depends(_admin)]


@router.get("/metrics", response_class=Exposition, responses={**_TEXT, **refusals(401, 404, 429, 503)})
async def gateway_metrics(gateway: TheGateway, _: Admin) -> Exposition:
    """This process, and the queues as Redis has them now. Scrape every gateway."""
    metrics.STREAMS.set(gateway.drain.streams)
    queues = await metrics.queues(gateway.state, await gateway.state.models.all())
    return Exposition(metrics.exposition(metrics.own(), queues))


@router.get("/metrics/workers", response_class=Exposition, responses={**_TEXT, **refusals(401, 404, 429, 503)})
async def worker_metrics(gateway: TheGateway, _: Admin) -> Exposition:
    """All replicas as of their last heartbeat, by `model` and `replica`. Scrape one gateway, whichever."""
    snapshots = await gateway.state.metrics.of(await gateway.state.models.all())
    # Of a hundred replicas it is 2 MB of text, and takes 0.4 s.
    return Exposition(await asyncio.to_thread(lambda: metrics.exposition(metrics.of_replicas(snapshots))))
