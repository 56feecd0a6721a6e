"""What slow and hostile clients are held to: raw sockets against a real gateway."""

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gateway_process
import httpx
import psutil
import pytest
import uvicorn
import websocket
from gateway_process import DEADLINE, Gateway, Worker, publish, until
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState

from interlace_server.doors.connections import Bounds, WebSocketConnection
from interlace_state.audit import Audit
from interlace_state.settings.gateway import GatewayConfig
from interlace_state.store import open_state

SOON = {"header_seconds": 1, "stall_seconds": 1, "drain_seconds": 0}
_TRIES = 20  # of what leans on the test's own pace: it is tried again where the machine has stood still meanwhile
GET = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
#: Refused by its headers, long before its body.
REFUSED = b"POST /request HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
CHUNKED = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = (
    b"GET /subscribe HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)


def dial(gateway: Gateway, buffer: int | None = None) -> socket.socket:
    """A connection, maybe with a small receive buffer."""
    host, port = gateway.url.removeprefix("http://").split(":")
    line = socket.socket()
    line.settimeout(DEADLINE)
    if buffer is not None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    line.connect((host, int(port)))
    return line


def everything(line: socket.socket) -> bytes:
    """What comes until the gateway closes; fails where it does not."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := line.recv(1 << 16):
            found += piece
    line.close()
    return found


def until_it_says(line: socket.socket, end: bytes) -> bytes:
    found = b""
    while not found.endswith(end):
        piece = line.recv(1 << 16)
        assert piece, found
        found += piece
    return found


def closes_on(line: socket.socket, drip: bytes, seconds: float = DEADLINE) -> bool:
    """Whether the gateway closes a connection on which a byte comes every moment, without an end."""
    line.settimeout(0.2)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            line.sendall(drip)
            if not line.recv(1 << 16):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


class Pace:
    """Whether the test itself was never away for as long as half of what a strict gateway waits for a client."""

    def __init__(self) -> None:
        self.held = True
        self._last = time.monotonic()

    def step(self) -> None:
        now = time.monotonic()
        self.held = self.held and now - self._last < min(SOON["header_seconds"], SOON["stall_seconds"]) / 2
        self._last = now


def open_files(gateway: Gateway) -> int:
    """Connections of clients, and files that are no logs; not the connections to Redis, which it keeps."""
    process = psutil.Process(gateway.process.pid)
    files = [one.path for one in process.open_files() if not one.path.endswith((".log", ".jsonl"))]
    return len(process.net_connections("tcp")) + len(files)


def refusals(gateway: Gateway, why: str) -> list[dict[str, Any]]:
    """The audit log's lines of one kind."""
    path = gateway.config.state_dir / "audit.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["action"] == "refused" and line["why"] == why]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Gateway]:
    """A gateway that waits for nobody for longer than a second."""
    with gateway_process.running(tmp_path_factory.mktemp("strict"), redis_url, gateway=SOON) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("opening", "drip"),
    [
        (b"", b""),
        (b"GE", b""),
        (b"GET /ping HTTP/1.1\r\nHost: localhost\r\nA: ", b"a"),
        (b"", b"\r\n"),
        (UPGRADE, b"A: b\r\n"),
        (GET, b"\r\n"),
        (GET + GET[:9], b"a"),
        (REFUSED, b"a"),
    ],
    ids=["nothing", "a word", "a header", "line ends", "a handshake", "line ends after", "a second", "a refused body"],
)
def test_a_request_that_never_comes_is_not_waited_for(strict: Gateway, opening: bytes, drip: bytes) -> None:
    lines = [dial(strict) for _ in range(5)]
    for line in lines:
        line.sendall(opening)
    assert all(closes_on(line, drip) for line in lines)
    assert strict.get("/ping").status_code == 200


def test_headers_have_a_time_of_their_own(start_gateway: Any) -> None:
    with start_gateway(gateway={"header_seconds": 1}) as gateway:
        line = dial(gateway)
        line.sendall(GET + GET[:9])
        assert closes_on(line, b"a")


def test_the_rest_of_a_refused_body_may_come(strict: Gateway) -> None:
    """A client that sends all of it before it reads still finds the answer."""
    for _ in range(_TRIES):
        line, pace, found = dial(strict), Pace(), b""
        with contextlib.suppress(ConnectionError):
            line.sendall(REFUSED)
            for _ in range(30):
                line.sendall(bytes(10_000))
                time.sleep(0.1)
                pace.step()
            line.sendall(bytes(700_000))
            line.sendall(GET)
            pace.step()
            while b'"pong"' not in found and (piece := line.recv(1 << 16)):
                found += piece
        line.close()
        if pace.held:
            break
    assert found.startswith(b"HTTP/1.1 400")
    assert found.endswith(b'"pong"')


def test_a_body_that_drips_is_refused(strict: Gateway) -> None:
    line = dial(strict)
    body = b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n'
    line.sendall(
        b"POST /request HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\nnnsight-version: 0.8.1\r\n"
        b"python-version: 3.11\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n" + body
    )
    line.settimeout(0.2)
    found = b""
    end = time.monotonic() + DEADLINE
    while not found and time.monotonic() < end:
        line.sendall(b"a")
        with contextlib.suppress(TimeoutError):
            found = line.recv(1 << 16)
    line.settimeout(DEADLINE)
    while found and b"gateway.stall_seconds" not in found and (piece := line.recv(1 << 16)):
        found += piece  # the head of an answer may come before its body
    assert found.startswith(b"HTTP/1.1 408")
    assert b"gateway.stall_seconds" in found
    line.close()


def test_a_connection_between_requests_is_kept_as_before(strict: Gateway) -> None:
    line = dial(strict)
    for _ in range(4):
        line.sendall(GET)
        until_it_says(line, b'"pong"')
        time.sleep(0.4)
    line.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * (1 << 20),
        b"GET /ping HTTP/1.1\r\nA: " + b"a" * (1 << 20),
        b"GET /ping HTTP/1.1\r\n" + b"A: b\r\n" * 200_000,
        CHUNKED + b"1\r\na\r\n0\r\n" + b"A: b\r\n" * 200_000,
        CHUNKED + b"1\r\na\r\n0\r\nA: " + b"a" * (1 << 20),
        CHUNKED + b"1;" + b"a" * (1 << 20),
    ],
    ids=["URL", "one header", "many headers", "many trailers", "one trailer", "chunk extension"],
)
def test_headers_without_end_are_refused(gateway: Gateway, head: bytes) -> None:
    line = dial(gateway)
    with contextlib.suppress(ConnectionError):
        line.sendall(head)
    found = everything(line)
    assert b"431 Request Header Fields Too Large" in found or (head.startswith(CHUNKED) and found.count(b"HTTP/") == 1)
    assert gateway.get("/ping").status_code == 200


def test_headers_under_the_limit_are_taken(gateway: Gateway) -> None:
    line = dial(gateway)
    line.sendall(GET[:-2] + b"A: " + b"a" * 60_000 + b"\r\n\r\n")
    assert until_it_says(line, b'"pong"').startswith(b"HTTP/1.1 200")
    line.close()


def test_requests_one_behind_another(gateway: Gateway) -> None:
    """A few are answered in their order; thousands would be a record each before the first is answered."""
    line = dial(gateway)
    line.sendall(GET * 9 + GET[:-2] + b"Connection: close\r\n\r\n")
    assert everything(line).count(b'"pong"') == 10
    line = dial(gateway)
    with contextlib.suppress(ConnectionError):  # it may be closed before all is sent
        line.sendall(GET * 4000)
    assert everything(line).count(b"200 OK") < 4000
    assert gateway.get("/ping").status_code == 200


def test_one_address_has_so_many_connections(start_gateway: Any) -> None:
    with start_gateway(gateway={"connections_per_address": 4}) as gateway:
        lines = [dial(gateway) for _ in range(4)]
        for line in lines:  # they are let in
            line.sendall(GET)
            until_it_says(line, b'"pong"')
        stream = [dial(gateway) for _ in range(3)]
        for line in stream:
            found = everything(line)
            assert found.startswith(b"HTTP/1.1 429 Too Many Requests")
            assert b"`gateway.connections_per_address`" in found
            assert b"Retry-After: " in found
        assert len(refusals(gateway, "connections")) == 3
        for line in lines:
            line.close()
        until(lambda: works(gateway), "room for another")


def test_all_together_have_so_many_connections(start_gateway: Any) -> None:
    """A WebSocket counts until it is closed, however it was opened."""
    with start_gateway(gateway={"connections": 2}) as gateway:
        streams = [gateway.connect(), gateway.connect()]
        found = everything(dial(gateway))
        assert found.startswith(b"HTTP/1.1 503 Service Unavailable")
        assert b"`gateway.connections`" in found
        with pytest.raises(websocket.WebSocketBadStatusException) as caught:
            gateway.connect()
        assert caught.value.status_code == 503
        for stream in streams:
            stream.shutdown()
        for _ in range(20):  # nothing is counted twice, or never again
            until(lambda: works(gateway), "room for another")
            line = dial(gateway)
            line.sendall(UPGRADE + b"A: b\r\n" * 500 + b"\r\n")  # more headers than the library takes
            assert b"HTTP/1.1 400" in everything(line)


def test_who_counts_as_one_address(tmp_path: Path) -> None:
    """A loopback address may be a proxy's, and has no bound of its own unless it is given one."""
    bounds = Bounds(GatewayConfig(), 2000, Audit(tmp_path / "audit.jsonl"))
    for address, same, another in [
        ("10.0.0.7", "10.0.0.7", "10.0.0.8"),
        ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"),
        ("fe80::1%eth0", "fe80::2%eth0", "10.0.0.9"),
    ]:
        assert [bounds.enter(address) for _ in range(256)] == [None] * 256
        assert (bounds.enter(same) or (0,))[0] == 429
        assert bounds.enter(another) is None
        bounds.leave(address)
        assert bounds.enter(same) is None
    assert {bounds.enter("127.0.0.1") for _ in range(1000)} == {None}
    assert [bounds.enter("10.1.1.1") for _ in range(1000)].count(None) == 2000 - 1000 - 3 * 257


def works(gateway: Gateway) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{gateway.url}/ping", timeout=60).status_code == 200
    return False


@pytest.mark.parametrize(
    "frame",
    [b"\x89\x80abcd", b"\x81\x80abcd", b"\x01\x80abcd" + b"\x00\x80abcd" * 9, b"\x8a\x80abcd"],
    ids=["pings", "messages", "fragments", "pongs"],
)
async def test_a_client_that_floods_a_stream_is_dropped(gateway: Gateway, worker: Worker, frame: bytes) -> None:
    stream = await asyncio.to_thread(gateway.connect)
    session_id = json.loads(stream.recv())["session_id"]
    job_id = (await asyncio.to_thread(gateway.post, session_id=session_id)).json()["id"]
    stream.sock.settimeout(DEADLINE)

    def flood() -> bool:
        end = time.monotonic() + DEADLINE
        try:
            while time.monotonic() < end:
                stream.sock.sendall(frame * 1000)
                time.sleep(0.01)
        except ConnectionError:
            return True
        return False

    assert await asyncio.to_thread(flood)
    await asyncio.to_thread(until, lambda: closed(gateway, job_id), "the stream's end")
    stream.shutdown()


async def test_who_is_spoken_to_after_a_broken_frame_has_left(tmp_path: Path) -> None:
    """In the moment between the frame, over which the socket is closed, and its end; it is no failure of ours."""
    raised: list[type[BaseException]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.disconnect"
        for message in ({"type": "websocket.send", "text": "late"}, {"type": "websocket.send", "bytes": b"late"}):
            try:
                await send(message)
            except (OSError, RuntimeError) as error:
                raised.append(type(error))

    bounds = Bounds(GatewayConfig(), 2, Audit(tmp_path / "audit.jsonl"))
    config = uvicorn.Config(app, lifespan="off", log_config=None, ws_ping_interval=None)
    config.load()
    listening = await asyncio.get_running_loop().create_server(
        lambda: WebSocketConnection(bounds, config, ServerState(), {}), "127.0.0.1", 0
    )
    async with listening, asyncio.timeout(DEADLINE):
        assert bounds.enter("127.0.0.1") is None
        answers, client = await asyncio.open_connection(*listening.sockets[0].getsockname())
        client.write(UPGRADE + b"\r\n")
        await answers.readuntil(b"\r\n\r\n")
        client.write(b"\xff\x80abcd")  # of no kind that there is
        assert (await answers.read())[2:4] == (1002).to_bytes(2, "big")  # it is closed: a protocol error
        client.close()
        while len(raised) < 2:
            await asyncio.sleep(0.01)
    assert raised == [ClientDisconnected] * 2


def closed(gateway: Gateway, job_id: str) -> bool:
    return any(line["job"] == job_id for line in gateway.actions("stream_closed"))


async def submitted(gateway: Gateway) -> tuple[socket.socket, str]:
    """A stream that can take little and reads nothing but its session's id, and the id of its job."""
    line = await asyncio.to_thread(dial, gateway, 4096)
    line.sendall(UPGRADE + b"\r\n")
    head = await asyncio.to_thread(until_it_says, line, b'"}')
    session_id = json.loads(head[head.index(b'{"') :])["session_id"]
    job = await asyncio.to_thread(gateway.post, session_id=session_id)
    return line, str(job.json()["id"])


async def test_a_listener_may_wait_for_as_long_as_it_likes(strict: Gateway) -> None:
    """Its handshake was in time, and there is nothing to read."""
    async with open_state(strict.config) as state:
        await publish(state, strict.config)
        line, job_id = await submitted(strict)
        await asyncio.sleep(2.5 * max(SOON.values()))  # the passage of time is what is tested
        await Worker(state).complete(await Worker(state).start(), b"result")

        def last() -> bytes:
            found = b""
            while b"COMPLETED" not in found:
                found += (piece := line.recv(1 << 16))
                assert piece, found
            line.close()
            return found

        assert b"ERROR" not in await asyncio.to_thread(last)
        await asyncio.to_thread(until, lambda: closed(strict, job_id), "the stream's end")


@pytest.mark.parametrize("size", [1 << 10, 24 << 20])
async def test_a_listener_that_never_reads_is_dropped(strict: Gateway, size: int) -> None:
    """Also while its lines come: nothing of them is kept for it in the gateway."""
    async with open_state(strict.config) as state:
        await publish(state, strict.config)
        worker = Worker(state)
        before = open_files(strict)
        line, job_id = await submitted(strict)
        lease = await worker.start()
        if size < 1 << 20:
            for _ in range(20):
                await worker.log(lease, *("x" * 9000 for _ in range(30)))
        else:
            await worker.complete(lease, bytes(size))
        await asyncio.to_thread(until, lambda: closed(strict, job_id), "the stream's end")
        await asyncio.to_thread(until, lambda: open_files(strict) <= before + 1, "its descriptor is free")
        if size < 1 << 20:
            assert (await asyncio.to_thread(strict.get, f"/response/{job_id}")).json()["status"] == "ERROR"
        line.close()


async def link(gateway: Gateway, size: int) -> str:
    """The path of a result's link."""
    async with open_state(gateway.config) as state:
        await publish(state, gateway.config)
        job_id = (await asyncio.to_thread(gateway.post)).json()["id"]
        worker = Worker(state)
        await worker.complete(await worker.start(), os.urandom(1) * size)
        url = (await asyncio.to_thread(gateway.get, f"/response/{job_id}")).json()["data"]
    return str(url.removeprefix(gateway.url))


def download(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


async def test_a_download_may_take_longer_than_a_client_may_be_silent(strict: Gateway) -> None:
    """Also one that is read slowly, as long as it is read."""
    size = 24 << 20
    path = await link(strict, size)

    def fetch() -> tuple[int, bool]:
        """How many bytes came, and whether they were read as slowly as is meant and no slower."""
        line = dial(strict, 1 << 16)
        line.sendall(download(path))
        pace, count = Pace(), 0
        end = time.monotonic() + 4 * strict.config.gateway.stall_seconds
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end:
                count += len(line.recv(1 << 16))
                time.sleep(0.05)
                pace.step()
            while piece := line.recv(1 << 16):
                count += len(piece)
                pace.step()
        line.close()
        return count, pace.held

    for _ in range(_TRIES):
        count, as_meant = await asyncio.to_thread(fetch)
        if as_meant:
            break
    assert count > size


@pytest.mark.parametrize("size", [3 << 20, 24 << 20])
async def test_a_download_that_nobody_reads_is_dropped(strict: Gateway, size: int) -> None:
    """Also where the gateway is done and closes, and its end waits in a buffer."""
    path = await link(strict, size)
    before = open_files(strict)
    lines = [await asyncio.to_thread(dial, strict, 4096) for _ in range(4)]
    for line in lines:
        line.sendall(download(path))
        await asyncio.to_thread(line.recv, 1, socket.MSG_PEEK)  # it has begun
    await asyncio.to_thread(until, lambda: open_files(strict) <= before, "their descriptors are free")
    for line in lines:
        assert len(await asyncio.to_thread(everything, line)) < size
