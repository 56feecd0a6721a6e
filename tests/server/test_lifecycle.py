"""The process: how it starts, what it leaves out, how it stops, and what it does without Redis."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gateway_process
import httpx
import pytest
import redis_server
from gateway_process import DEADLINE, Gateway, Worker, publish, saved, until

from interlace_state.store import open_state

pytestmark = pytest.mark.usefixtures("redis_url")


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "interlace_server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_the_gateway_leaves_the_heavy_and_the_dangerous_out() -> None:
    code = """
import json, sys, interlace_server.__main__, interlace_server.routes.subscribe
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    loaded = set(json.loads(found.stdout))
    assert {"interlace_server", "interlace_state", "fastapi"} <= loaded
    assert not loaded & {"torch", "nnsight", "ray", "transformers", "cloudpickle", "numpy"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("gateway: {prot: 1}", "gateway.prot"),
        ("gateway: {port: 99999}", "gateway.port"),
        ("redis: {url: null}", "`redis.url` is not set"),
        ("redis: {url: 'unix:///nowhere/redis.sock'}", "Redis does not answer at unix:///nowhere/redis.sock"),
    ],
)
def test_a_start_that_cannot_be_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "interlace.yaml"
    file.write_text(content)
    found = run("--config", str(file), "--port", "0") if "port" not in content else run("--config", str(file))
    assert found.returncode == 2
    assert sentence in found.stderr
    assert "Traceback" not in found.stderr


def test_a_store_is_one_services(start_gateway: Any, redis_url: str, tmp_path: Path) -> None:
    """A gateway would remove the other's waiting jobs. Another gateway of the same service is welcome."""
    file = tmp_path / "other.yaml"
    with start_gateway() as gateway:
        file.write_text(json.dumps({"redis": {"url": redis_url, "prefix": "other:"}, "state_dir": str(tmp_path)}))
        found = run("--config", str(file), "--port", "0")
        assert found.returncode == 2
        assert f"the store is that of the service with `redis.prefix` {gateway.config.redis.prefix!r}" in found.stderr
        assert "Traceback" not in found.stderr
    with start_gateway():
        pass


def test_a_store_that_cannot_be_written_to(redis_url: str, tmp_path: Path) -> None:
    file, store = tmp_path / "interlace.yaml", tmp_path / "file"
    store.write_text("no folder")
    file.write_text(json.dumps({"redis": {"url": redis_url}, "state_dir": str(tmp_path), "store": {"url": str(store)}}))
    found = run("--config", str(file), "--port", "0")
    assert (found.returncode, found.stdout) == (2, "")
    assert "the store cannot be written to: " in found.stderr
    assert str(store) in found.stderr
    assert "Traceback" not in found.stderr


def test_a_port_that_is_taken(tmp_path: Path, redis_url: str) -> None:
    file = tmp_path / "interlace.yaml"
    file.write_text(f"redis: {{url: '{redis_url}'}}\nstate_dir: {tmp_path}\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = run("--config", str(file), "--port", str(port))
    assert (found.returncode, "Traceback" in found.stderr) == (2, False)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in found.stderr


def test_the_command_line_goes_before_the_file(tmp_path: Path, redis_url: str) -> None:
    file = tmp_path / "interlace.yaml"
    file.write_text(f"redis: {{url: '{redis_url}'}}\nstate_dir: {tmp_path}\ngateway: {{port: 1}}\n")
    command = [sys.executable, "-m", "interlace_server", "--config", str(file), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert httpx.get(f"{url}/healthz", timeout=60).json() == {"status": "ok"}
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0


async def stream(gateway: Gateway, *, post: bool) -> Any:
    """An open socket, with a job or without."""
    opened = await asyncio.to_thread(gateway.connect)
    session_id = json.loads(await asyncio.to_thread(opened.recv))["session_id"]
    if post:
        answer = await asyncio.to_thread(gateway.post, session_id=session_id)
        assert answer.status_code == 200
    return opened


async def last(opened: Any) -> dict[str, Any]:
    while True:
        frame = await asyncio.to_thread(opened.recv)
        assert frame, "the socket was closed without a last frame"
        if isinstance(frame, bytes):
            return {"status": "COMPLETED"}
        found: dict[str, Any] = json.loads(frame)
        if found["status"] in ("COMPLETED", "ERROR"):
            return found


async def test_a_stream_may_end_while_the_server_drains(start_gateway: Any) -> None:
    with start_gateway(gateway={"drain_seconds": 600}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            worker = Worker(state)
            opened = await stream(gateway, post=True)
            lease = await worker.start()
            gateway.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(until, lambda: gateway.get("/readyz").status_code == 503, "the drain")
            refused = await asyncio.to_thread(gateway.post)
            assert (refused.status_code, refused.json()["detail"]) == (
                503,
                "The server is shutting down and takes no new jobs. Please try again in a minute.",
            )
            late = await stream(gateway, post=False)
            late.close()
            await worker.complete(lease, saved())
            assert (await last(opened))["status"] == "COMPLETED"
            opened.close()
            assert await asyncio.to_thread(gateway.process.wait, DEADLINE) == 0


@pytest.mark.parametrize("signals", [1, 2])
async def test_open_streams_get_a_last_frame_when_the_server_stops(start_gateway: Any, signals: int) -> None:
    """After `drain_seconds`, or at once after a second signal."""
    with start_gateway(gateway={"drain_seconds": 0.5 if signals == 1 else 600}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            streams = [await stream(gateway, post=post) for post in (True, False)]
            gateway.process.send_signal(signal.SIGTERM)
            if signals == 2:  # the second once the first was heard: two at once are one
                await asyncio.to_thread(until, lambda: gateway.get("/readyz").status_code == 503, "the drain")
                gateway.process.send_signal(signal.SIGTERM)
            running, idle = [await last(opened) for opened in streams]
            assert running["status"] == idle["status"] == "ERROR"
            assert "shutting down" in running["description"]
            assert f"/response/{running['id']}" in running["description"]
            assert idle["description"] == (
                "The server is shutting down and takes no new jobs. Please try again in a minute."
            )
            assert await asyncio.to_thread(gateway.process.wait, DEADLINE) == 0  # it would drain for longer


class OwnRedis:
    """A Redis that can be taken away and brought back, with its data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.url = ""

    def start(self) -> None:
        self.url = self._stack.enter_context(redis_server.running(self._folder))

    def stop(self) -> None:
        self._stack.close()


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    redis = OwnRedis(tmp_path_factory.mktemp("own-redis"))
    redis.start()
    yield redis
    redis.stop()


@pytest.fixture
def fragile(own_redis: OwnRedis, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway whose Redis is `own_redis`."""
    with gateway_process.running(tmp_path, own_redis.url, gateway={"drain_seconds": 0}) as gateway:
        yield gateway


def test_without_redis_every_route_says_so(fragile: Gateway, own_redis: OwnRedis) -> None:
    own_redis.stop()
    for path in ("/status", "/env", "/connected", f"/response/{'0' * 32}", "/hf/api/models/lab/tiny", "/readyz"):
        answer = fragile.get(path)
        assert answer.status_code == 503, path
        assert "cannot reach its job queue (Redis)" in answer.json()["detail"], path
    assert fragile.get("/healthz").status_code == 200
    posted = fragile.post()
    assert (posted.status_code, posted.json()) == (503, {"detail": answer.json()["detail"]})


async def test_without_redis_a_socket_still_has_its_two_frames(fragile: Gateway, own_redis: OwnRedis) -> None:
    own_redis.stop()
    opened = await stream(fragile, post=False)
    frame = await last(opened)
    assert (frame["status"], "Redis" in frame["description"]) == ("ERROR", True)
    opened.close()


async def test_a_stream_whose_redis_stays_away_ends_with_an_error(own_redis: OwnRedis, tmp_path: Path) -> None:
    soon = {"interlace_server.routes.subscribe._PATIENCE": 2.0}
    with gateway_process.running(tmp_path, own_redis.url, soon, gateway={"drain_seconds": 0}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
        streams = [await stream(gateway, post=post) for post in (True, False)]
        own_redis.stop()
        for opened in streams:
            assert "cannot reach its job queue (Redis)" in (await last(opened))["description"]
            opened.close()


async def test_a_stream_goes_on_after_redis_was_restarted(fragile: Gateway, own_redis: OwnRedis) -> None:
    async with open_state(fragile.config) as state:
        await publish(state, fragile.config)
        worker = Worker(state)
        opened = await stream(fragile, post=True)
        lease = await worker.start()
        assert json.loads(await asyncio.to_thread(opened.recv))["status"] == "QUEUED"
        await state.redis.save()
        own_redis.stop()
        own_redis.start()
        await worker.log(lease, "after the restart")
        await worker.complete(lease, saved())
        statuses = []
        while not statuses or statuses[-1] not in ("COMPLETED", "ERROR"):
            frame = await asyncio.to_thread(opened.recv)
            statuses.append("COMPLETED" if isinstance(frame, bytes) else json.loads(frame)["status"])
        assert statuses == ["DISPATCHED", "RUNNING", "LOG", "COMPLETED"]
        opened.close()
