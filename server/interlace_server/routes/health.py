"""For whoever watches the process: alive, and able to serve."""

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from redis.exceptions import RedisError

from interlace_server.doors.auth import visible
from interlace_server.errors import REDIS_DOWN
from interlace_server.gateway import Gateway, TheGateway
from interlace_state.models import HostedModel, ModelState

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    ready: bool
    #: Why not, or which models are ready.
    detail: str


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness}})
async def readyz(request: Request, response: Response, gateway: TheGateway) -> Readiness:
    """Redis answers, and at least one model takes jobs, or is started by the next one."""
    readiness = await _readiness(request, gateway)
    response.status_code = 200 if readiness.ready else 503
    return readiness


async def _readiness(request: Request, gateway: Gateway) -> Readiness:
    if gateway.drain.refusing:
        return Readiness(ready=False, detail="The server is shutting down.")
    try:
        models = visible(await gateway.state.models.all(), request)
    except RedisError:
        return Readiness(ready=False, detail=REDIS_DOWN)
    ready = [str(model.card.key) for model in models if model.state is ModelState.READY]
    cold = [str(model.card.key) for model in models if model.state is ModelState.COLD]
    told = [f"{what}: {', '.join(keys)}." for what, keys in (("Ready", ready), ("Scaled to zero", cold)) if keys]
    if told:
        return Readiness(ready=True, detail=" ".join(told))
    if not models:
        return Readiness(ready=False, detail="No model is hosted yet.")
    return Readiness(ready=False, detail=f"No model is ready: {'; '.join(map(_why, models))}.")


def _why(model: HostedModel) -> str:
    return f"{model.card.key}: {model.card.failure or 'is being loaded'}"
