"""What every route may reach, handed in by the process."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from interlace_server.drain import Drain
from interlace_state.config import Config
from interlace_state.store import State


@dataclass(frozen=True)
class Gateway:
    """One gateway process."""

    config: Config
    state: State
    drain: Drain

    def public_url(self, connection: HTTPConnection) -> str:
        """The URL that clients reach us at, without a slash at its end."""
        if self.config.gateway.public_url is not None:
            return self.config.gateway.public_url.rstrip("/")
        url = connection.base_url
        return str(url.replace(scheme={"ws": "http", "wss": "https"}.get(url.scheme, url.scheme))).rstrip("/")


def gateway_of(connection: HTTPConnection) -> Gateway:
    return cast(Gateway, connection.app.state.gateway)


async def _gateway_of(connection: HTTPConnection) -> Gateway:
    """As `gateway_of`, for FastAPI: it would call what is no coroutine in a thread."""
    return gateway_of(connection)


TheGateway = Annotated[Gateway, Depends(_gateway_of)]
