"""What a web page that somebody opens can send here: nothing."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import websocket
from gateway_process import DEADLINE, HEADERS, Gateway, Worker, publish
from starlette.types import Message, Receive, Scope, Send

from interlace_server.doors.origins import Origins
from interlace_state.audit import Audit
from interlace_state.settings.gateway import GatewayConfig
from interlace_state.store import State, open_state

EVIL = "http://evil.example"


def connect(gateway: Gateway, **options: Any) -> websocket.WebSocket:
    return websocket.create_connection(f"ws{gateway.url.removeprefix('http')}/subscribe", timeout=DEADLINE, **options)


def post(gateway: Gateway, **headers: str) -> httpx.Response:
    return gateway.post(headers={**HEADERS, **headers})


async def test_the_stock_client_is_let_in(gateway: Gateway, worker: Worker) -> None:
    """websocket-client names the target as its origin; `requests` and httpx name none."""
    socket = await asyncio.to_thread(connect, gateway)
    assert len(json.loads(await asyncio.to_thread(socket.recv))["session_id"]) == 32
    socket.close()
    without = await asyncio.to_thread(connect, gateway, suppress_origin=True)
    without.close()
    assert (await asyncio.to_thread(gateway.post)).status_code == 200


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
async def test_by_any_name_of_this_machine(gateway: Gateway, state: State, name: str) -> None:
    """Any port: it may be a tunnel's."""
    assert httpx.get(f"{gateway.url}/ping", headers={"host": name}).json() == "pong"
    answer = await asyncio.to_thread(post, gateway, host=name, origin=f"http://{name.lower()}")
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "192.168.0.7", "", "@", "[::1"],
)
@pytest.mark.parametrize("path", ["/ping", "/status", "/results/x", "/nothing-here", "/readyz", "/metrics"])
def test_a_name_that_somebody_else_gave_this_machine(gateway: Gateway, host: str, path: str) -> None:
    answer = httpx.get(f"{gateway.url}{path}", headers={"host": host})
    assert answer.status_code == 400
    if host:
        assert answer.json()["detail"] == (
            f"This server listens for its own machine only and is not known as {host!r}. Reach it as localhost or "
            "127.0.0.1, or set `gateway.public_url` to the URL that clients write."
        )


@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost:1", "https://127.0.0.1", "file://", "", "http://["])
async def test_a_page_can_neither_post_nor_listen(gateway: Gateway, state: State, origin: str) -> None:
    """Not even one of another port of this machine, or one whose origin the browser hides."""
    answer = await asyncio.to_thread(post, gateway, origin=origin)
    assert (answer.status_code, answer.json()) == (403, {"detail": f"Web pages of {origin} may not use this server."})
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        await asyncio.to_thread(connect, gateway, origin=origin)
    assert caught.value.status_code == 403
    assert json.loads(caught.value.resp_body) == answer.json()


async def test_a_rebound_name_can_not_listen(gateway: Gateway, state: State) -> None:
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        await asyncio.to_thread(connect, gateway, host="evil.example", origin=EVIL)
    assert caught.value.status_code == 400


async def test_a_page_is_shown_nothing(gateway: Gateway, state: State) -> None:
    """No answer allows another origin to read it, and no preflight is granted."""
    for method, path in (("GET", "/status"), ("GET", "/nothing-here"), ("POST", "/request"), ("OPTIONS", "/request")):
        headers = {"origin": EVIL, "access-control-request-method": "POST", "access-control-request-headers": "x"}
        answer = await asyncio.to_thread(httpx.request, method, f"{gateway.url}{path}", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer.status_code == 405


async def test_the_public_url_is_a_name_too(start_gateway: Any) -> None:
    """A proxy in front may or may not pass on the name that the client asked for."""
    with start_gateway(gateway={"public_url": "https://interlace.lab/"}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            for headers in (
                {"host": "interlace.lab", "origin": "https://interlace.lab"},
                {"host": "interlace.lab:443", "origin": "https://interlace.lab"},
                {"origin": "https://interlace.lab"},
                {},
            ):
                answer = await asyncio.to_thread(post, gateway, **headers)
                assert answer.status_code == 200, headers
            refused = await asyncio.to_thread(post, gateway, host="interlace.lab", origin="https://evil.example")
            assert refused.status_code == 403


@pytest.mark.parametrize(
    ("bound", "host", "status"),
    [
        ("127.0.0.1", "gpu.lab:8000", 400),
        ("127.8.8.8", "127.8.8.8:8000", 200),
        ("::1", "gpu.lab", 400),
        ("localhost", "gpu.lab", 400),
        ("0.0.0.0", "gpu.lab:8000", 200),
        ("10.0.0.7", "gpu.lab", 200),
        ("gpu.lab", "anything", 200),
    ],
)
async def test_names_are_checked_where_only_this_machine_should_come(
    tmp_path: Path, bound: str, host: str, status: int
) -> None:
    assert await status_of(tmp_path, GatewayConfig(host=bound), ("host", host)) == status


@pytest.mark.parametrize(
    ("host", "status"),
    [("gpu.lab", 200), ("GPU.lab:8000", 200), ("interlace.lab", 200), ("evil.example", 400), ("127.0.0.1:8000", 200)],
)
async def test_names_that_the_operator_lists(tmp_path: Path, host: str, status: int) -> None:
    config = GatewayConfig(host="0.0.0.0", hosts=("gpu.lab",), public_url="https://interlace.lab")
    assert await status_of(tmp_path, config, ("host", host)) == status


@pytest.mark.parametrize("host", ["10.1.2.3:8000", "gateway:8000", "127.0.0.1:8000"])
@pytest.mark.parametrize(
    ("path", "fine"),
    [("/healthz", True), ("/readyz", True), ("/metrics", True), ("/metrics/workers", True), ("/metrics/", False)],
)
async def test_whoever_watches_asks_by_an_address(tmp_path: Path, host: str, path: str, fine: bool) -> None:
    """Kubernetes by a pod's, Prometheus by a container's name. A gateway on loopback is watched from there."""
    config = GatewayConfig(host="0.0.0.0", hosts=("il.lab",))
    expected = 200 if fine or host.startswith("127.") else 400
    assert await status_of(tmp_path, config, ("host", host), method="GET", path=path) == expected
    assert await status_of(tmp_path, GatewayConfig(), ("host", "gateway:8000"), method="GET", path=path) == 400
    if fine:
        assert await status_of(tmp_path, config, ("host", host), ("origin", EVIL), path=path) == 403


async def test_more_names_for_loopback(start_gateway: Any) -> None:
    with start_gateway(gateway={"hosts": ["gpu.lab"]}) as gateway:
        for host, status in (("gpu.lab:1", 200), ("localhost", 200), ("evil.example", 400)):
            assert httpx.get(f"{gateway.url}/ping", headers={"host": host}).status_code == status


async def test_two_names_at_once_are_none(tmp_path: Path) -> None:
    assert await status_of(tmp_path, GatewayConfig(), ("host", "localhost"), ("host", "evil.example")) == 400
    assert await status_of(tmp_path, GatewayConfig()) == 400
    origins = (("origin", "http://localhost"), ("origin", EVIL))
    assert await status_of(tmp_path, GatewayConfig(), ("host", "localhost"), *origins) == 403


async def status_of(
    folder: Path, config: GatewayConfig, *headers: tuple[str, str], method: str = "POST", path: str = "/"
) -> int:
    """What a request with these headers is answered, by a gateway that would answer 200 to all."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers]
    await Origins(app, config, Audit(folder / "audit.jsonl"))(
        {"type": "http", "method": method, "path": path, "headers": raw}, receive, send
    )
    status: int = sent[0]["status"]
    return status
