"""What connections may take: how many there are, the time and the bytes of their headers, what a listener says.

uvicorn bounds none of it. Who reads nothing is dropped by the kernel, see `_listen` of `__main__.py`.
"""

import asyncio
import http
import ipaddress
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from interlace_state import log
from interlace_state.audit import Audit
from interlace_state.files import Piece
from interlace_state.settings.gateway import GatewayConfig, is_loopback

SLOWEST = 1 << 10  # bytes a second that a body has to come with, on average
_MOST_HEADERS = 64 << 10  # bytes of a request's line, headers and trailers
_MOST_PIPELINED = 16  # requests that wait for the answer to another on the same connection
_MOST_SAID = 64 << 10  # bytes of WebSocket frames of a client, which has little to say
_SAID_A_SECOND = 16 << 10  # bytes: what of it is forgotten
_MOST_OF_ADDRESS = 256  # connections
_COME_AGAIN = 5  # seconds


class Bounds:
    """The open connections of this process, and who may open one more."""

    def __init__(self, config: GatewayConfig, most: int, audit: Audit) -> None:
        """``most``: as many as the process has descriptors for."""
        self.config = config
        self._most = min(config.connections, most)
        self._audit = audit
        self._open: Counter[str] = Counter()

    def enter(self, address: str) -> tuple[int, str] | None:
        """Count a connection; or why not, as the status and the sentence of an answer."""
        source = _source(address)
        most = self.config.connections_per_address or (self._most if is_loopback(address) else _MOST_OF_ADDRESS)
        refusal = None
        if self._open.total() >= self._most:
            refusal = 503, f"The server has {self._most} open connections, its limit (`gateway.connections`)."
        elif self._open[source] >= most:
            refusal = 429, f"Your address has {most} open connections, its limit (`gateway.connections_per_address`)."
        if refusal is None:
            self._open[source] += 1
        else:
            with log.instead_of(OSError, "audit_failed"):
                self._audit.refuse(why="connections", address=address)
        return refusal

    def leave(self, address: str) -> None:
        source = _source(address)
        self._open[source] -= 1
        if not self._open[source]:
            del self._open[source]


def _source(address: str) -> str:
    """What counts as one address: of IPv6 a network, since whoever has one address there has 2**64."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


def _answer(status: int, sentence: str) -> bytes:
    """A whole answer, for where no application is reached."""
    body = json.dumps({"detail": sentence})
    again = f"Retry-After: {_COME_AGAIN}\r\n" if status in (429, 503) else ""
    return (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{again}Connection: close\r\n\r\n{body}"
    ).encode()


class HttpConnection(HttpToolsProtocol):
    """A connection that has to say what it wants, in time and in few bytes."""

    def __init__(
        self,
        bounds: Bounds,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._bounds = bounds
        self._counted: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._in_headers = False
        self._header_bytes = 0
        #: Bytes since the parser last had something for us: of one endless header or chunk extension.
        self._held_back = 0
        self._progress = False
        #: Bytes of a body that was answered before its end.
        self._leftover = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if refusal := self._bounds.enter(address):
            transport.write(_answer(*refusal))
            transport.close()
            return
        self._counted = address
        self._wait(self._bounds.config.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._counted is not None:
            self._bounds.leave(self._counted)
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._stop_waiting()
        super().handle_websocket_upgrade()
        self._counted = None  # the WebSocket's from now on

    def data_received(self, data: bytes) -> None:
        self._progress = False
        super().data_received(data)
        if self.transport.is_closing() or self._counted is None:
            return
        self._held_back = 0 if self._progress else self._held_back + len(data)
        if self._held_back > _MOST_HEADERS:
            self.send_400_response("")
        elif self._unwatched():
            self._wait(self._bounds.config.header_seconds if self._in_headers else self._bounds.config.stall_seconds)

    def send_400_response(self, msg: str) -> None:
        if max(self._header_bytes, self._held_back) > _MOST_HEADERS:
            self.transport.write(_answer(431, f"The request's headers are over the limit of {_MOST_HEADERS:,} bytes."))
            self.transport.close()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        self._progress = self._in_headers = True
        self._header_bytes = self._leftover = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Also of a trailer."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_waiting()
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise ValueError("too many requests at once")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        if self.cycle is not None and self.cycle.response_complete:
            self._leftover += len(body)
        super().on_body(body)

    def _count(self, size: int) -> None:
        self._progress = True
        self._header_bytes += size
        if self._header_bytes > _MOST_HEADERS:
            raise ValueError("headers too large")  # the parser stops, and uvicorn calls send_400_response

    def _unwatched(self) -> bool:
        """Whether bytes have come that ended uvicorn's timeout, and that no application waits for.

        They are some of the headers, or of a body that is refused already, or nothing but line ends.
        """
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self._timer is None and self.timeout_keep_alive_task is None

    def _wait(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        seconds = self._bounds.config.stall_seconds
        if self._leftover >= SLOWEST * seconds:  # it is on its way
            self._leftover = 0
            self._wait(seconds)
        else:
            self.transport.close()


def long_frame(size: int, pieces: AsyncIterator[Piece]) -> dict[str, Any]:
    """The ASGI message by which a WebSocket's application has ``size`` bytes sent in one binary frame, as they come."""
    return {"type": "websocket.send", "size": size, "pieces": pieces}


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A client that listens. What it is told waits until it has read; a flood of frames ends it."""

    def __init__(
        self,
        bounds: Bounds,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._bounds = bounds
        self._said = 0.0
        self._said_at = self.loop.time()
        #: One frame at a time: a long one is written in pieces.
        self._frame = asyncio.Lock()
        #: What came in the midst of a long frame, where nothing can be answered.
        self._unheard: bytearray | None = None

    async def send(self, message: Any) -> None:
        """Also takes the message of `long_frame`."""
        async with self._frame:
            if "pieces" in message:
                await self._send_long(message["size"], message["pieces"])
            elif self.close_sent and message["type"] == "websocket.send":
                raise ClientDisconnected  # it was closed meanwhile, over a frame that is none
            else:
                await super().send(message)

    async def _send_long(self, size: int, pieces: AsyncIterator[Piece]) -> None:
        """Write a binary frame; a client that reads slowly has no more than a piece of it waiting for it."""
        self._unheard = bytearray()
        try:
            await self._write(b"\x82\x7f" + size.to_bytes(8, "big"))
            async for piece in pieces:
                await self._write(piece)
                size -= len(piece)
            if size:
                raise RuntimeError(f"the last {size:,} bytes of a frame are gone")
        except BaseException:
            self.transport.abort()  # what follows would be taken for the rest of the frame
            raise
        finally:
            heard, self._unheard = bytes(self._unheard), None
        if heard:
            super().data_received(heard)

    async def _write(self, data: Piece) -> None:
        await self.writable.wait()
        if self.disconnected or self.transport.is_closing():
            raise ClientDisconnected
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._bounds.leave(self.client[0] if self.client else "")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated:
            now = self.loop.time()
            self._said = max(0.0, self._said - _SAID_A_SECOND * (now - self._said_at)) + len(data)
            self._said_at = now
        if self._said > _MOST_SAID:
            log.warning("flood", address=self.client[0] if self.client else None)
            self.transport.abort()
            return
        if self._unheard is not None:
            self._unheard += data
            return
        super().data_received(data)
        if not self.handshake_initiated:  # it came whole: the library has refused it, and says so to nobody
            self.transport.write(_answer(400, "The WebSocket's handshake is not valid, or has too many headers."))
            self.transport.close()
