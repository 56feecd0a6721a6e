"""`WS /v1/stream`: many jobs on one socket, from any event on, and for their own tenant alone."""

import asyncio
import json
import struct
from typing import Any

import gateway_process
import pytest
import websocket
from gateway_process import DEADLINE, Gateway, Worker, mint, saved
from meeting import submitted

from interlace.protocol.event import Saved
from interlace_state.store import open_state


class Listener:
    """A client's socket, and what it was told."""

    def __init__(self, gateway: Gateway, key: str = "", **options: Any) -> None:
        header = {"ndif-api-key": key or gateway.key}
        url = f"ws{gateway.url.removeprefix('http')}/v1/stream"
        self.socket = websocket.create_connection(url, timeout=DEADLINE, header=header, **options)

    async def say(self, **word: Any) -> None:
        await asyncio.to_thread(self.socket.send, json.dumps(word))

    async def next(self) -> tuple[dict[str, Any], bytes | None]:
        frame = await asyncio.to_thread(self.socket.recv)
        if isinstance(frame, str):
            return json.loads(frame or '"closed"'), None
        (length,) = struct.unpack_from("!I", frame)
        return json.loads(frame[4 : 4 + length]), frame[4 + length :]

    async def to_the_end(self) -> list[tuple[dict[str, Any], bytes | None]]:
        """All up to the end of a job."""
        told = [await self.next()]
        while told[-1][0]["event"]["type"] != "ended":
            told.append(await self.next())
        return told


async def post(gateway: Gateway) -> str:
    return str((await asyncio.to_thread(gateway.post)).json()["id"])


async def stream(worker: Worker, lease: Any, *values: bytes) -> None:
    events = [Saved(number=number, name="x", size=len(data), data=data) for number, data in enumerate(values, 1)]
    assert await worker.state.queue.record(lease, *events)


async def test_a_job_from_its_first_event_to_its_result(gateway: Gateway, worker: Worker) -> None:
    listener = Listener(gateway)
    job_id = await post(gateway)
    await listener.say(follow=job_id, after=None)
    lease = await worker.start()
    await worker.log(lease, "one line")
    await stream(worker, lease, b"", b"bytes")
    staged = worker.state.values.stage()
    staged.write_bytes(b"in the store")
    await worker.state.values.put(job_id, 3, staged)
    assert await worker.state.queue.record(lease, Saved(number=3, name="y", step=4, size=12))
    await worker.complete(lease, saved(x=1))
    told = await listener.to_the_end()
    assert {head["job"] for head, _ in told} == {job_id}
    assert [head["event"]["type"] for head, _ in told] == ["state"] * 3 + ["log"] + ["saved"] * 3 + ["ended"]
    values = [(head["event"]["number"], head["event"]["step"], data) for head, data in told[4:7]]
    assert values == [(1, None, b""), (2, None, b"bytes"), (3, 4, b"in the store")]
    assert all(head["event"]["data"] is None for head, _ in told[4:7])
    assert told[-1][1] == saved(x=1)


async def test_one_job_more_than_a_socket_takes_is_refused_and_the_others_go_on(
    gateway: Gateway, worker: Worker
) -> None:
    listener = Listener(gateway)
    for _ in range(256):
        await listener.say(follow=await post(gateway))
    await listener.say(follow=(one_more := await post(gateway)))
    told = [await listener.next() for _ in range(257)]
    refused = [head for head, _ in told if "failed" in head]
    words = "This socket follows 256 jobs, as many as one can: leave some, or open another."
    assert refused == [{"job": one_more, "failed": words, "status": 429}]
    job_id = (await worker.start()).job.id
    while (head := (await listener.next())[0])["event"]["state"] != "running":
        pass
    assert head["job"] == job_id


async def test_a_socket_takes_one_connection_to_redis_however_many_jobs_it_follows(
    gateway: Gateway, worker: Worker
) -> None:
    listener = Listener(gateway)
    for _ in range(60):
        await listener.say(follow=(await submitted(worker.state, model=gateway_process.KEY)).id)
        assert (await listener.next())[0]["event"]["state"] == "queued"
    while not (waiting := await reads_that_wait(worker)):
        pass
    assert len(waiting) == 1


async def reads_that_wait(worker: Worker) -> list[dict[str, str]]:
    """Connections to Redis that wait for events."""
    return [one for one in await worker.state.redis.client_list() if one["cmd"] == "xread" and "b" in one["flags"]]


async def test_it_goes_on_behind_any_event(gateway: Gateway, worker: Worker) -> None:
    job_id = await post(gateway)
    lease = await worker.start()
    await stream(worker, lease, b"a", b"b", b"c")
    await worker.complete(lease, saved())
    first = Listener(gateway)
    await first.say(follow=job_id)
    whole = await first.to_the_end()
    last = Listener(gateway)
    await last.say(follow=job_id, after=whole[-1][0]["id"])
    assert await last.next() == whole[-1]
    for position in range(len(whole) - 1):
        again = Listener(gateway)
        await again.say(follow=job_id, after=whole[position][0]["id"])
        assert await again.to_the_end() == whole[position + 1 :]
        again.socket.close()


async def test_many_jobs_on_one_socket_and_one_that_is_left(gateway: Gateway, worker: Worker) -> None:
    listener = Listener(gateway)
    jobs = [await post(gateway) for _ in range(3)]
    for job_id in jobs:
        await listener.say(follow=job_id)
        assert (await listener.next())[0]["job"] == job_id
    await listener.say(leave=jobs[0])
    await listener.say(follow="0" * 32)  # what is answered behind it has been heard behind it
    assert (await listener.next())[0]["status"] == 404
    leases = [await worker.start() for _ in jobs]
    for lease in leases:
        await worker.complete(lease, saved())
    told: dict[str, list[str]] = {job_id: [] for job_id in jobs}
    while not all(told[job_id][-1:] == ["ended"] for job_id in jobs[1:]):
        head, _ = await listener.next()
        told[head["job"]].append(head["event"]["type"])
    assert told[jobs[0]] == []
    await listener.say(follow=jobs[0])
    assert [head["event"]["type"] for head, _ in await listener.to_the_end()][-1] == "ended"


async def test_a_client_that_leaves_ends_no_job(gateway: Gateway, worker: Worker) -> None:
    listener = Listener(gateway)
    job_id = await post(gateway)
    await listener.say(follow=job_id)
    await listener.next()
    listener.socket.close()
    await asyncio.sleep(gateway.config.lifetimes.disconnect_grace + 1)
    lease = await worker.start()
    assert lease.job.id == job_id
    await worker.complete(lease, saved())


@pytest.mark.parametrize(
    "word", ["nonsense", "[]", "{}", '{"follow": "x"}', '{"follow": 7}', '{"stop": "all"}', '{"follow": null}']
)
async def test_what_it_does_not_understand_ends_the_socket(gateway: Gateway, worker: Worker, word: str) -> None:
    listener = Listener(gateway)
    await asyncio.to_thread(listener.socket.send, word)
    head, _ = await listener.next()
    assert head["status"] == 422
    assert "Expected a job to follow" in head["failed"]
    assert (await listener.next())[0] == "closed"


async def test_a_job_that_is_none(gateway: Gateway, worker: Worker) -> None:
    listener = Listener(gateway)
    await listener.say(follow="0" * 32)
    head, _ = await listener.next()
    assert (head["job"], head["status"]) == ("0" * 32, 404)
    job_id = await post(gateway)
    await listener.say(follow=job_id)
    assert (await listener.next())[0]["job"] == job_id


async def test_only_so_many_jobs(gateway: Gateway, worker: Worker) -> None:
    listener = Listener(gateway)
    jobs = [(await submitted(worker.state, model=gateway_process.KEY)).id for _ in range(257)]
    for job_id in jobs:
        await listener.say(follow=job_id)
    told = [(await listener.next())[0] for _ in jobs]
    (refused,) = [head for head in told if "failed" in head]
    assert refused["job"] == jobs[-1]
    assert (refused["status"], "256 jobs" in refused["failed"]) == (429, True)


async def test_values_of_others_are_unknown(start_gateway: Any, redis_url: str) -> None:
    with start_gateway(gateway={"drain_seconds": 1}) as gateway:
        prefix = gateway.config.redis.prefix
        keys = [mint(redis_url, prefix, tenant) for tenant in ("lab-a", "lab-b")]
        operator = mint(redis_url, prefix, "operators", role="admin")
        async with open_state(gateway.config) as state:
            await gateway_process.publish(state, gateway.config)
            worker = Worker(state)
            gateway.key = keys[0]
            job_id = await post(gateway)
            lease = await worker.start()
            await stream(worker, lease, b"secret")
            await worker.complete(lease, saved(x=1))
            path = f"/v1/jobs/{job_id}/values/1"
            assert (await asyncio.to_thread(gateway.get, path)).content == b"secret"
            for other in (keys[1], operator, "il-nobody"):
                gateway.key = other
                assert (await asyncio.to_thread(gateway.get, path)).status_code in (401, 404)
                listener = Listener(gateway, other)
                if other != "il-nobody":
                    await listener.say(follow=job_id)
                head, data = await listener.next()
                assert (head["status"], data) == (401 if other == "il-nobody" else 404, None)
                assert "secret" not in json.dumps(head)
                listener.socket.close()


async def test_a_web_page_of_others_is_kept_out(gateway: Gateway) -> None:
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        await asyncio.to_thread(Listener, gateway, origin="http://evil.example")


async def test_it_ends_with_the_server_and_the_job_goes_on(start_gateway: Any) -> None:
    with start_gateway(gateway={"drain_seconds": 0}) as gateway:
        async with open_state(gateway.config) as state:
            await gateway_process.publish(state, gateway.config)
            worker = Worker(state)
            listener = Listener(gateway)
            job_id = await post(gateway)
            await listener.say(follow=job_id)
            await listener.next()
            gateway.process.terminate()
            assert (await listener.next())[0] == "closed"
            lease = await worker.start()
            assert lease.job.id == job_id
