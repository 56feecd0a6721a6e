"""A result of any size passes the gateway in pieces, whoever reads it and however slowly."""

import asyncio
import io
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import gateway_process
import httpx
import pytest
import torch
import websocket
from gateway_process import Gateway, Worker, until

from interlace_state.store import open_state

MIB = 1 << 20
SIZE = 64 * MIB
BODY = bytes(range(256)) * (SIZE >> 8)
#: What the gateway may take beside itself, whatever passes.
GROWTH = 64 * MIB


@pytest.fixture(scope="module")
def own_gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Gateway]:
    """A gateway that has not been made larger by other tests."""
    with gateway_process.running(tmp_path_factory.mktemp("large"), redis_url) as gateway:
        yield gateway


@pytest.fixture
async def own_worker(own_gateway: Gateway) -> AsyncIterator[Worker]:
    async with open_state(own_gateway.config) as state:
        await gateway_process.publish(state, own_gateway.config)
        yield Worker(state)


def resident(gateway: Gateway, what: str) -> int:
    """`RSS`, or `HWM`, the most that it was since `forget_the_most`: bytes."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    match = re.search(rf"Vm{what}:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) << 10


def forget_the_most(gateway: Gateway) -> None:
    Path(f"/proc/{gateway.process.pid}/clear_refs").write_text("5")


async def completed(gateway: Gateway, worker: Worker) -> tuple[websocket.WebSocket, str]:
    """A socket whose job has ended with a result, of which nothing is read yet, and the job's id."""
    stream = await asyncio.to_thread(gateway.connect)
    session = json.loads(await asyncio.to_thread(stream.recv))["session_id"]
    job_id = (await asyncio.to_thread(gateway.post, session_id=session)).json()["id"]
    await worker.complete(await worker.start(), BODY)
    return stream, job_id


def until_it_begins(stream: websocket.WebSocket) -> None:
    """Until the frame of the result has begun, and waits for us to read: it is more than buffers hold."""
    for _ in range(3):
        assert isinstance(stream.recv(), str)
    assert stream.sock.recv(1, socket.MSG_PEEK)


def result_of(stream: websocket.WebSocket) -> bytes:
    while not isinstance(frame := stream.recv(), bytes):
        assert frame
    update = torch.load(io.BytesIO(frame), weights_only=False)
    assert (update["status"], update["meta"]["runtime"]) == ("COMPLETED", 1.2346)
    data: bytes = update["data"]
    return data


async def link(gateway: Gateway, job_id: str) -> str:
    url: str = (await asyncio.to_thread(gateway.get, f"/response/{job_id}")).json()["data"]
    return url


async def test_memory_stays_flat_by_socket(own_gateway: Gateway, own_worker: Worker) -> None:
    forget_the_most(own_gateway)
    before = resident(own_gateway, "RSS")
    for _ in range(4):
        stream, _ = await completed(own_gateway, own_worker)
        assert await asyncio.to_thread(result_of, stream) == BODY
        stream.close()
    assert resident(own_gateway, "HWM") - before < GROWTH


async def test_memory_stays_flat_by_link(own_gateway: Gateway, own_worker: Worker) -> None:
    stream, job_id = await completed(own_gateway, own_worker)
    stream.close()
    url = await link(own_gateway, job_id)
    forget_the_most(own_gateway)
    before = resident(own_gateway, "RSS")

    def read() -> int:
        with httpx.stream("GET", url, timeout=60) as answer:
            return sum(map(len, answer.iter_raw()))

    assert [await asyncio.to_thread(read) for _ in range(4)] == [SIZE] * 4
    assert resident(own_gateway, "HWM") - before < GROWTH


async def test_memory_stays_flat_while_many_do_not_read(own_gateway: Gateway, own_worker: Worker) -> None:
    forget_the_most(own_gateway)
    before = resident(own_gateway, "RSS")
    waiting = [await completed(own_gateway, own_worker) for _ in range(8)]
    for stream, _ in waiting:
        assert await asyncio.to_thread(result_of, stream) == BODY
        stream.close()
    assert resident(own_gateway, "HWM") - before < GROWTH


async def test_a_client_that_leaves_in_the_midst(own_gateway: Gateway, own_worker: Worker) -> None:
    stream, job_id = await completed(own_gateway, own_worker)
    assert await asyncio.to_thread(stream.sock.recv, 10_000)
    stream.shutdown()
    await asyncio.to_thread(
        until, lambda: any(line["job"] == job_id for line in own_gateway.actions("stream_closed")), "the end"
    )
    assert (await asyncio.to_thread(own_gateway.get, f"/response/{job_id}")).json()["status"] == "COMPLETED"
    assert not own_gateway.actions("failed")


async def test_a_result_that_is_deleted_while_it_is_sent(own_gateway: Gateway, own_worker: Worker) -> None:
    stream, job_id = await completed(own_gateway, own_worker)
    url = await link(own_gateway, job_id)
    await asyncio.to_thread(stream.recv)
    with httpx.stream("GET", url, timeout=60) as answer:
        pieces = answer.iter_raw()
        first = await asyncio.to_thread(next, pieces)
        await own_worker.state.results.delete(job_id)
        assert first + await asyncio.to_thread(b"".join, pieces) == BODY
    assert await asyncio.to_thread(result_of, stream) == BODY
    stream.close()
    assert (await asyncio.to_thread(httpx.get, url)).status_code == 404


async def test_a_ping_in_the_midst_of_a_frame_is_answered_behind_it(own_gateway: Gateway, own_worker: Worker) -> None:
    stream, _ = await completed(own_gateway, own_worker)
    await asyncio.to_thread(until_it_begins, stream)
    stream.ping("are you there")
    assert await asyncio.to_thread(result_of, stream) == BODY
    opcode, frame = await asyncio.to_thread(stream.recv_data_frame, True)
    assert (opcode, frame.data) == (websocket.ABNF.OPCODE_PONG, b"are you there")
    stream.close()


async def test_a_result_that_is_cut_while_it_is_sent_is_no_result(own_gateway: Gateway, own_worker: Worker) -> None:
    """What a disk that fails looks like: the client must not take half of a frame for a whole one."""
    stream, job_id = await completed(own_gateway, own_worker)
    await asyncio.to_thread(until_it_begins, stream)
    with Path(own_gateway.config.store_url, "results", job_id).open("r+b") as file:
        file.truncate(SIZE // 2)
    with pytest.raises((ConnectionError, websocket.WebSocketConnectionClosedException)):
        await asyncio.to_thread(result_of, stream)
    (line,) = await asyncio.to_thread(until, lambda: own_gateway.actions("failed"), "the log")
    assert "bytes of a frame are gone" in line["traceback"]
