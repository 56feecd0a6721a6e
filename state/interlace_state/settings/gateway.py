"""Of the configuration: the front door."""

import ipaddress
import re
from typing import Annotated

from pydantic import Field

from interlace_state.settings.section import DAY, Section, is_http, such

_Version = Annotated[str, such(re.compile(r"\d+(\.\d+){0,3}").fullmatch, "a version, e.g. '3.10'")]


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, as seen by itself only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class GatewayConfig(Section):
    """The HTTP and WebSocket front door."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    public_url: Annotated[str, such(is_http, "http://HOST or https://HOST")] | None = None
    """The URL that clients reach the gateway at, for result links; default: the one that the client used.
    Needed where a proxy passes another name than localhost on to a gateway that listens on loopback."""
    min_nnsight: _Version = "0.8.0"
    """The oldest client nnsight that is served."""
    min_python: _Version = "3.10"
    """The oldest client Python that is served."""
    drain_seconds: float = Field(default=10.0, ge=0, le=DAY)
    """On shutdown, how long open streams may still run to their end."""
    hosts: tuple[str, ...] = ()
    """Names that clients may call the gateway by, in the header `Host`, beside that of `public_url` and localhost;
    none: any name, and on loopback those of this machine only. Health and metrics are told by any name."""
    connections: int = Field(default=8192, ge=1)
    """Connections that may be open at the same time; fewer where the process may not open two files for each."""
    connections_per_address: int | None = Field(default=None, ge=1)
    """Connections that one address may have open; default: 256, and from loopback, where a proxy may stand, any number.
    Behind a proxy on another machine every client has the proxy's address: set it to `connections` and bound the
    clients in the proxy."""
    header_seconds: float = Field(default=15.0, gt=0, le=DAY)
    """How long a client may take to send the headers of a request, from the moment that it connects."""
    stall_seconds: float = Field(default=60.0, gt=0, le=DAY)
    """How long a client may send nothing of a body that it has begun, or read nothing of what it is sent."""
