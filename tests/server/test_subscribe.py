"""The WebSocket: every frame that a stock client meets, and every way in which a stream can end."""

import asyncio
import io
import json
import time
from typing import Any

import gateway_process
import pytest
import torch
import websocket
import zstandard
from gateway_process import Gateway, Worker, publish, saved, until
from nnsight.schema.response import ResponseModel

from interlace.protocol.event import Ended
from interlace.protocol.job import JobState, ResultRef
from interlace.protocol.model import ModelKey
from interlace_state.keys import Keys
from interlace_state.store import State, open_state


async def receive(socket: websocket.WebSocket) -> dict[str, Any]:
    """The next frame, read as the stock client reads it."""
    frame = await asyncio.to_thread(socket.recv)
    if isinstance(frame, bytes):
        return ResponseModel.unpickle(frame).model_dump(mode="python")
    assert frame, "the socket was closed without a last frame"
    return json.loads(ResponseModel.model_validate_json(frame).model_dump_json())


async def last(socket: websocket.WebSocket) -> dict[str, Any]:
    """The last frame, COMPLETED or ERROR."""
    while (frame := await receive(socket))["status"] not in ("COMPLETED", "ERROR"):
        pass
    return frame


async def subscribe(gateway: Gateway) -> tuple[websocket.WebSocket, str]:
    socket = await asyncio.to_thread(gateway.connect)
    session_id: str = json.loads(await asyncio.to_thread(socket.recv))["session_id"]
    assert len(session_id) == 32
    return socket, session_id


async def open_and_post(gateway: Gateway, **changes: Any) -> tuple[websocket.WebSocket, str]:
    """A socket and the id of the job that was posted for it."""
    socket, session_id = await subscribe(gateway)
    answer = await asyncio.to_thread(gateway.post, session_id=session_id, **changes)
    assert answer.status_code == 200, answer.text
    return socket, answer.json()["id"]


async def test_a_job_from_post_to_its_result(gateway: Gateway, worker: Worker) -> None:
    socket, job_id = await open_and_post(gateway)
    lease = await worker.start()
    await worker.log(lease, "one line", "another, with ü")
    await worker.complete(lease, saved(hidden=torch.arange(6).reshape(2, 3)))
    frames = [await receive(socket) for _ in range(6)]
    socket.close()
    assert [(frame["status"], frame["description"]) for frame in frames] == [
        ("QUEUED", "Added to Queue at position 1."),
        ("DISPATCHED", "Your job has been sent to the model deployment."),
        ("RUNNING", "Your job has started running."),
        ("LOG", "one line"),
        ("LOG", "another, with ü"),
        ("COMPLETED", "Your job has been completed."),
    ]
    assert {frame["id"] for frame in frames} == {job_id}
    result = torch.load(io.BytesIO(zstandard.decompress(frames[-1]["data"])), weights_only=False)
    assert torch.equal(result["hidden"], torch.arange(6).reshape(2, 3))
    assert frames[-1]["meta"] == {
        "runtime": 1.2346,
        "max_memory_usage": 1 << 20,
        "max_mem_by_gpu": {},
        "max_mem_pct_by_gpu": {},
        "cpu_seconds": 1.1,
        "queued_seconds": 0.5,
    }


async def test_the_place_in_the_queue(gateway: Gateway, worker: Worker) -> None:
    sockets = [await open_and_post(gateway) for _ in range(3)]
    assert [(await receive(socket))["description"] for socket, _ in sockets] == [
        f"Added to Queue at position {place}." for place in (1, 2, 3)
    ]
    for socket, _ in sockets:
        socket.close()


async def test_more_streams_than_redis_py_has_connections_by_default(gateway: Gateway, worker: Worker) -> None:
    sessions = [await subscribe(gateway) for _ in range(120)]
    socket, session_id = sessions[-1]
    await asyncio.to_thread(gateway.post, session_id=session_id)
    await worker.complete(await worker.start(), saved())
    assert (await last(socket))["status"] == "COMPLETED"
    for opened, _ in sessions:
        opened.close()


async def test_a_model_that_still_loads(gateway: Gateway, state: State) -> None:
    key = ModelKey(repo_id="lab/slow")
    await publish(state, gateway.config, key, ready=False)
    socket, _ = await open_and_post(gateway, model_key=key.canonical)
    frame = await receive(socket)
    assert (frame["status"], frame["description"]) == ("DEPLOYING", "Model Deploying...")
    await state.queue.fail_all(key, "lab/slow could not be loaded on this server: out of disk")
    assert (await last(socket))["description"].endswith("out of disk")
    socket.close()


@pytest.mark.parametrize("state_", [JobState.ERROR, JobState.CANCELLED])
async def test_a_failure_has_its_text_and_what_it_cost(gateway: Gateway, worker: Worker, state_: JobState) -> None:
    socket, _ = await open_and_post(gateway)
    await worker.end(await worker.start(), "Traceback ...\nValueError: no", state_)
    frame = await last(socket)
    assert (frame["status"], frame["description"]) == ("ERROR", "Traceback ...\nValueError: no")
    assert frame["meta"]["runtime"] == 0.5
    socket.close()


async def test_a_job_that_another_worker_takes_over(gateway: Gateway, worker: Worker) -> None:
    socket, _ = await open_and_post(gateway)
    lease = await worker.start()
    await worker.state.queue.give_back(lease, "The worker stopped; the job waits for another.")
    await worker.complete(await worker.start(), saved())
    statuses = [(await receive(socket))["status"] for _ in range(7)]
    assert statuses == ["QUEUED", "DISPATCHED", "RUNNING", "QUEUED", "DISPATCHED", "RUNNING", "COMPLETED"]
    socket.close()


async def test_a_result_over_the_limit_comes_as_a_link(start_gateway: Any) -> None:
    with start_gateway(store={"inline_bytes": 100}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            worker = Worker(state)
            for size, inline in ((100, True), (101, False)):
                socket, job_id = await open_and_post(gateway)
                await worker.complete(await worker.start(), bytes(size))
                frame = await last(socket)
                socket.close()
                assert isinstance(frame["data"], bytes) is inline
                if not inline:
                    assert frame["data"].startswith(f"{gateway.url}/results/{job_id}.")
                    answer = await asyncio.to_thread(gateway.get, frame["data"].removeprefix(gateway.url))
                    assert answer.content == bytes(size)


async def test_a_large_result_goes_inline(gateway: Gateway, worker: Worker) -> None:
    socket, _ = await open_and_post(gateway)
    body = bytes(range(256)) * (100 << 10)
    await worker.complete(await worker.start(), body)
    assert (await last(socket))["data"] == body
    socket.close()


async def test_a_client_that_reads_after_the_gateway_has_closed(gateway: Gateway, worker: Worker) -> None:
    socket, job_id = await open_and_post(gateway)
    body = bytes(100_000)
    await worker.complete(await worker.start(), body)
    await asyncio.to_thread(until, lambda: closed(gateway, job_id), "the gateway's close")
    assert (await last(socket))["data"] == body
    socket.close()


def closed(gateway: Gateway, job_id: str) -> bool:
    return any(line["job"] == job_id for line in gateway.actions("stream_closed"))


async def test_the_gateway_closes_a_socket_that_the_client_keeps(gateway: Gateway, worker: Worker) -> None:
    socket, _ = await open_and_post(gateway)
    await worker.complete(await worker.start(), saved())
    await last(socket)
    opcode, _ = await asyncio.to_thread(socket.recv_data)
    assert opcode == websocket.ABNF.OPCODE_CLOSE
    socket.close()


async def test_a_stream_that_ends_before_its_session_is_open_still_has_two_frames(start_gateway: Any) -> None:
    """Stock nnsight takes the first frame for the session's id, whatever it is."""
    with start_gateway(gateway={"drain_seconds": 0}) as gateway:
        async with open_state(gateway.config) as state:
            await state.redis.client_pause(100_000, all=False)  # writes wait, and so the session is not opened
            try:
                socket = await asyncio.to_thread(gateway.connect)
                gateway.process.terminate()
                first, second = json.loads(await asyncio.to_thread(socket.recv)), await receive(socket)
            finally:
                await state.redis.client_unpause()
            assert len(first["session_id"]) == 32
            assert (second["status"], second["description"].split(".")[0]) == (
                "ERROR",
                "The server is shutting down and takes no new jobs",
            )
            socket.close()
            assert await asyncio.to_thread(gateway.process.wait, gateway_process.DEADLINE) == 0


async def test_a_client_that_leaves_before_it_posts(gateway: Gateway, state: State) -> None:
    socket, session_id = await subscribe(gateway)
    key = Keys(gateway.config.redis.prefix).session(session_id)
    assert await state.redis.exists(key)
    await asyncio.to_thread(socket.close)
    end = time.monotonic() + gateway_process.DEADLINE
    while await state.redis.exists(key):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_a_client_that_leaves_while_its_job_runs_cancels_it(gateway: Gateway, worker: Worker) -> None:
    socket, job_id = await open_and_post(gateway)
    lease = await worker.start()
    await receive(socket)
    socket.shutdown()
    await asyncio.to_thread(until, lambda: closed(gateway, job_id), "the gateway's close")
    await worker.complete(lease, saved())
    update = (await asyncio.to_thread(gateway.get, f"/response/{job_id}")).json()
    assert (update["status"], update["description"]) == ("ERROR", "The client left before the job had ended.")


async def test_a_gateway_that_stops_cuts_no_grace_short_and_does_not_wait_for_it(start_gateway: Any) -> None:
    with start_gateway(gateway={"drain_seconds": 3600}, lifetimes={"disconnect_grace": 3600}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            socket, job_id = await open_and_post(gateway)
            await receive(socket)
            socket.shutdown()
            session = f"{gateway.config.redis.prefix}session:*"
            while [key async for key in state.redis.scan_iter(match=session)]:  # until it is known that it has left
                pass
            gateway.process.terminate()
            assert await asyncio.to_thread(gateway.process.wait, gateway_process.DEADLINE) == 0
            assert [line["job"] for line in gateway.actions("kept")] == [job_id]
            assert (await Worker(state).start()).job.id == job_id


async def test_what_a_client_says_on_the_socket_is_not_heard(gateway: Gateway, worker: Worker) -> None:
    socket, session_id = await subscribe(gateway)
    for _ in range(100):
        socket.send("noise")
    await asyncio.to_thread(gateway.post, session_id=session_id)
    await worker.complete(await worker.start(), saved())
    assert (await last(socket))["status"] == "COMPLETED"
    socket.close()


async def test_a_session_may_wait_longer_than_redis_blocks(gateway: Gateway, worker: Worker) -> None:
    socket, session_id = await subscribe(gateway)
    await asyncio.sleep(2.5)  # the passage of time is what is tested
    await asyncio.to_thread(gateway.post, session_id=session_id)
    lease = await worker.start()
    await asyncio.sleep(2.5)
    await worker.complete(lease, saved())
    assert (await last(socket))["status"] == "COMPLETED"
    socket.close()
    assert not gateway.actions("redis_failed")


async def test_a_result_that_is_gone_is_an_error_frame(gateway: Gateway, worker: Worker) -> None:
    socket, job_id = await open_and_post(gateway)
    result = ResultRef(size=5)
    await worker.state.queue.finish(await worker.start(), Ended(state=JobState.COMPLETED, result=result))
    frame = await last(socket)
    assert (frame["status"], frame["id"]) == ("ERROR", job_id)
    assert f"The result of job {job_id} is gone" in frame["description"]
    socket.close()


async def test_what_nobody_foresaw_is_an_error_frame_and_a_traceback_in_the_log(
    gateway: Gateway, worker: Worker
) -> None:
    socket, job_id = await open_and_post(gateway)
    lease = await worker.start()
    await worker.state.redis.xadd(Keys(gateway.config.redis.prefix).events(job_id), {"e": "no event"})
    frame = await last(socket)
    assert "Something went wrong inside the server" in frame["description"]
    number = frame["description"].split()[-1].rstrip(".")
    (line,) = [line for line in gateway.actions("failed") if line["number"] == number]
    assert "ValidationError" in line["traceback"]
    await worker.end(lease, "over")
    socket.close()
