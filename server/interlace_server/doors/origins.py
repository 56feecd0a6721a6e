"""Keeps web pages out: nothing but nnsight, tools and our own pages may reach a gateway that asks for no key.

A page that somebody opens can send requests to any address, this machine's included, and can give its own name the
address 127.0.0.1 (DNS rebinding). What it cannot do is lie in the headers `Origin` and `Host`.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from interlace_server.errors import answer, note
from interlace_state.audit import Audit
from interlace_state.settings.gateway import GatewayConfig, is_loopback

_PORTS = {"http": 80, "https": 443}
#: Asked by whoever watches a gateway, by an address that nobody can list: a pod's, or a container's name. They tell
#: what is hosted, as open paths do, and to an admin's key how much is done.
_WATCHED = frozenset({"/healthz", "/readyz", "/metrics", "/metrics/workers"})
_READS = frozenset({"GET", "HEAD", "OPTIONS"})  # a page may send them, but is not shown the answer: we allow no CORS


class Origins:
    """Refuses what a web page of somebody else sends: ASGI middleware."""

    def __init__(self, app: ASGIApp, config: GatewayConfig, audit: Audit) -> None:
        self._app = app
        self._audit = audit
        public = urlsplit(config.public_url or "")
        self._public = _authority(public.scheme, public.netloc)
        self._loopback = is_loopback(config.host)
        self._hosts: frozenset[str] | None = None
        if self._loopback or config.hosts:
            own = {"localhost", "127.0.0.1", "::1", *((config.host,) if self._loopback else ())}
            names = {name.lower() for name in {*config.hosts, *own, public.hostname or ""}}
            self._hosts = frozenset(names - {""})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (refusal := self._refusal(scope)):
            note(self._audit, scope, "host" if refusal[0] == 400 else "origin")
            await answer(*refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = hosts[0] if len(hosts) == 1 else ""
        is_watched = not self._loopback and scope["path"] in _WATCHED
        if self._hosts is not None and _name(host) not in self._hosts and not is_watched:
            if not self._loopback:
                return 400, f"This server is not known as {host[:80]!r}: `gateway.hosts` names what it is known as."
            return 400, (
                f"This server listens for its own machine only and is not known as {host[:80]!r}. Reach it as "
                "localhost or 127.0.0.1, or set `gateway.public_url` to the URL that clients write."
            )
        if scope["type"] == "http" and scope["method"] in _READS:
            return None
        for origin in headers.getlist("origin"):
            if not self._is_own(origin, host):
                return 403, f"Web pages of {origin[:80]} may not use this server."
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page of this origin came from us: by the name that is asked for, or by our public one."""
        scheme, _, authority = origin.partition("://")
        asking = _authority(scheme, authority)
        return asking is not None and asking in (_authority(scheme, host), self._public)


def _authority(scheme: str, netloc: str) -> tuple[str, int] | None:
    """Host and port; None where the text names none."""
    try:
        parts = urlsplit(f"//{netloc}")
        port = parts.port or _PORTS[scheme]
    except (ValueError, KeyError):
        return None
    return (parts.hostname, port) if parts.hostname else None


def _name(host: str) -> str:
    """The host of a `Host` header, without its port; empty where it is none."""
    authority = _authority("http", host)
    return authority[0] if authority else ""
