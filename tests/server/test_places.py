"""A waiting job's client is told where it stands, on its stream and when it polls; one that leaves has a grace."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import gateway_process
import pytest
import websocket
from gateway_process import Gateway, Worker, publish
from monkey import until

from interlace.protocol.job import JobState
from interlace_state.store import open_state

PERIOD = 0.4  # seconds


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Gateway]:
    """One that looks at places often."""
    hurried = {"interlace_server.routes.subscribe._PLACE_PERIOD": PERIOD}
    with gateway_process.running(tmp_path_factory.mktemp("places"), redis_url, hurried) as gateway:
        yield gateway


async def told_until(socket: websocket.WebSocket, status: str, start: str) -> None:
    """Receive up to a frame of a status whose description begins so. Before it, only other places are told."""
    while not (frame := await receive(socket))["description"].startswith(start):
        assert frame["status"] == "QUEUED", frame
    assert frame["status"] == status


async def open_and_post(gateway: Gateway) -> tuple[websocket.WebSocket, str]:
    socket = await asyncio.to_thread(gateway.connect)
    session_id = json.loads(await asyncio.to_thread(socket.recv))["session_id"]
    answer = await asyncio.to_thread(gateway.post, session_id=session_id)
    return socket, answer.json()["id"]


async def receive(socket: websocket.WebSocket) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(await asyncio.to_thread(socket.recv))
    return frame


async def posted(gateway: Gateway) -> str:
    """A polled job's id."""
    answer = await asyncio.to_thread(gateway.post)
    job_id: str = answer.json()["id"]
    return job_id


async def run_next(worker: Worker) -> None:
    await worker.end(await worker.start(), "done", JobState.ERROR)


async def test_a_place_is_sent_as_it_changes_and_no_more_once_the_job_runs(gateway: Gateway, worker: Worker) -> None:
    await posted(gateway)
    running = await worker.start()
    others = [await posted(gateway) for _ in range(2)]
    socket, _ = await open_and_post(gateway)
    first = await receive(socket)
    assert (first["status"], first["description"]) == ("QUEUED", "Added to Queue at position 3.")
    await told_until(socket, "QUEUED", "Position 3 in the queue")
    await worker.end(running, "done")
    for place in ("Position 2 in the queue; it should start in about ", "Next in the queue"):
        running = await worker.start()
        await told_until(socket, "QUEUED", place)
        await worker.end(running, "done")
    running = await worker.start()
    await told_until(socket, "DISPATCHED", "Your job has been sent")
    assert (await receive(socket))["status"] == "RUNNING"
    await asyncio.sleep(4 * PERIOD)  # longer than from one look at its place to the next
    await worker.end(running, "enough")
    assert (await receive(socket))["status"] == "ERROR"
    assert len(others) == 2


async def test_a_poll_tells_the_place(gateway: Gateway, worker: Worker) -> None:
    jobs = [await posted(gateway) for _ in range(3)]
    polled = [(await asyncio.to_thread(gateway.get, f"/response/{job_id}")).json() for job_id in jobs]
    assert {one["status"] for one in polled} == {"QUEUED"}
    assert [one["description"].split(" in the queue")[0] for one in polled] == ["Next", "Position 2", "Position 3"]
    await worker.state.control.pause(worker.key)
    polled = [(await asyncio.to_thread(gateway.get, f"/response/{job_id}")).json() for job_id in jobs]
    assert all(one["description"].endswith("in the queue; the model is paused by its operator.") for one in polled)
    page = (await asyncio.to_thread(gateway.get, "/page/jobs")).text
    assert "2 before it; the model is paused by its operator" in page
    await worker.state.control.resume(worker.key)
    for _ in jobs:
        await run_next(worker)


async def test_a_client_that_leaves_has_a_grace_and_a_polled_job_is_not_cancelled(start_gateway: Any) -> None:
    with start_gateway(lifetimes={"disconnect_grace": 1.5}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            polled = await posted(gateway)
            socket, job_id = await open_and_post(gateway)
            await receive(socket)
            left = time.monotonic()
            socket.close()

            async def cancelled() -> bool:
                return (await state.events.last(job_id, "local")).state is JobState.CANCELLED  # type: ignore[union-attr]

            await until(cancelled, "the job is not cancelled", 120)
            assert time.monotonic() - left > 1.4
            assert (await state.events.last(polled, "local")).state is JobState.QUEUED  # type: ignore[union-attr]


async def test_a_client_that_leaves_at_once_leaves_no_job(gateway: Gateway, worker: Worker) -> None:
    """Its socket may be gone before the gateway has looked which job it posted."""
    for _ in range(5):
        socket, _ = await open_and_post(gateway)
        socket.sock.close()

    async def nothing_waits() -> bool:
        return await worker.state.queue.length(worker.key) == 0

    await until(nothing_waits, "jobs still wait", 120)
