"""The gateway as an ASGI application: its doors, in the order in which a request meets them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from interlace import __version__
from interlace_server import errors
from interlace_server.collector import collecting
from interlace_server.doors.admission import Door
from interlace_server.doors.auth import Authentication
from interlace_server.doors.headers import SecurityHeaders
from interlace_server.doors.observation import Observation
from interlace_server.doors.origins import Origins
from interlace_server.doors.slashes import Slashes
from interlace_server.drain import Drain
from interlace_server.gateway import Gateway
from interlace_server.page import site
from interlace_server.routes import (
    admin,
    artifacts,
    health,
    hub,
    jobs,
    lake,
    methods,
    metrics,
    models,
    nnsight,
    results,
    stream,
    subscribe,
)
from interlace_state.config import Config
from interlace_state.store import State
from interlace_state.tracing import Tracing


def create_app(config: Config, state: State, drain: Drain) -> FastAPI:
    """The application over an open state; whoever opened it closes it."""
    tracing = Tracing(config.telemetry, "interlace-gateway")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with collecting(state, config.lifetimes), tracing:
            yield

    app = FastAPI(
        title="Interlace", version=__version__, summary=__doc__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.gateway = Gateway(config, state, drain)
    errors.install(app)
    app.add_exception_handler(hub.NotOnHub, hub.not_on_hub)
    for module in (
        nnsight,
        subscribe,
        stream,
        results,
        health,
        hub,
        metrics,
        jobs,
        methods,
        artifacts,
        lake,
        admin,
        models,
    ):
        app.include_router(module.router)
    if config.page.enabled:
        site.install(app)
    # The last one that is added is the first that a request meets.
    app.add_middleware(Door, config=config, drain=drain, state=state)
    app.add_middleware(Authentication, config=config, state=state)
    app.add_middleware(Origins, config=config.gateway, audit=state.audit)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Observation, tracing=tracing)
    app.add_middleware(Slashes)
    return app
