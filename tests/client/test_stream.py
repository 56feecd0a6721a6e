"""The kept socket of `interlace.Client`: it goes on where it broke, and a request that broke is one job."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import gateway_process
import ports
import pytest
import torch
import zstandard
from gateway_process import DEADLINE, HEADERS, KEY, PICKLE, Gateway, Worker, envelope, saved, until
from wire import Wire, cut

import interlace
from interlace.protocol.event import Log, Saved
from interlace.protocol.job import JobState
from interlace_state.store import open_state

MORE_THAN_A_SOCKET_TAKES = 257


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    sections = {"gateway": {"drain_seconds": 0}, "store": {"inline_bytes": 4000}}
    with gateway_process.running(folder, redis_url, **sections) as gateway:
        yield gateway


@pytest.fixture
async def worker(gateway: Gateway) -> AsyncIterator[Worker]:
    async with open_state(gateway.config) as state:
        await gateway_process.publish(state, gateway.config)
        yield Worker(state)
        await state.queue.fail_all(KEY, "The test has ended.")


@pytest.fixture
def wire(gateway: Gateway) -> Iterator[Wire]:
    wire = Wire(gateway)
    yield wire
    wire.close()


@pytest.fixture
def client(wire: Wire) -> Iterator[interlace.Client]:
    with interlace.connect(wire.url) as client:
        yield client


def bytes_of(value: Any) -> bytes:
    with io.BytesIO() as file:
        torch.save(value, file)
        return file.getvalue()


async def stream(worker: Worker, lease: Any, *numbers: int) -> None:
    """Stream values that say their number."""
    for number in numbers:
        data = bytes_of(number)
        event = Saved(number=number, name=f"value {number}", size=len(data), data=data)
        assert await worker.state.queue.record(lease, event)


def submit(client: interlace.Client) -> interlace.RunningJob:
    return client.submit(json.dumps(envelope()), zstandard.compress(PICKLE), HEADERS)


async def values_of(job: interlace.RunningJob) -> list[tuple[str, Any]]:
    async with asyncio.timeout(DEADLINE):
        return [(name, value) async for name, value in job.avalues()]


async def test_it_goes_on_behind_the_last_event(worker: Worker, wire: Wire, client: interlace.Client) -> None:
    job = await asyncio.to_thread(submit, client)
    lease = await worker.start()
    for number in range(1, 7, 2):
        await worker.log(lease, f"line {number}")
        await stream(worker, lease, number, number + 1)
        await cut(wire, 1)
    await worker.complete(lease, saved(x=torch.arange(3)))
    assert await values_of(job) == [(f"value {number}", number) for number in range(1, 7)]
    assert torch.equal((await job.aresult())["x"], torch.arange(3))
    events = await asyncio.to_thread(list, job.events())
    assert [event.text for event in events if isinstance(event, Log)] == ["line 1", "line 3", "line 5"]
    assert [event.number for event in events if isinstance(event, Saved)] == list(range(1, 7))
    assert job.cost is not None
    assert job.cost.cpu_seconds == 1.1


async def test_it_goes_on_with_another_gateway(tmp_path: Path, redis_url: str) -> None:
    port = ports.free()
    with gateway_process.running(tmp_path, redis_url, gateway={"drain_seconds": 0, "port": port}) as first:
        client = interlace.connect(first.url)
        async with open_state(first.config) as state:
            await gateway_process.publish(state, first.config)
            worker = Worker(state)
            job = await asyncio.to_thread(submit, client)
            lease = await worker.start()
            await stream(worker, lease, 1)
            assert (await anext(job.avalues())).value == 1
    with gateway_process.running(tmp_path, redis_url, gateway={"drain_seconds": 0, "port": port}) as second:
        async with open_state(second.config) as state:
            worker = Worker(state)
            await stream(worker, lease, 2)
            await worker.complete(lease, saved(x=1))
            assert await values_of(job) == [("value 2", 2)]
            assert await job.aresult() == {"x": 1}
        client.close()


async def test_a_request_whose_answer_was_lost_is_one_job(worker: Worker, wire: Wire, client: interlace.Client) -> None:
    wire.lost_answers = 2
    job = await asyncio.to_thread(client._http.submit, json.dumps(envelope()), zstandard.compress(PICKLE), HEADERS)
    assert wire.lost_answers == 0
    assert [one.id for one in await asyncio.to_thread(list, client.jobs(state="queued"))] == [job]


async def test_a_job_that_runs_again_gives_each_value_once(worker: Worker, client: interlace.Client) -> None:
    job = await asyncio.to_thread(submit, client)
    lease = await worker.start()
    await stream(worker, lease, 1, 2)
    await worker.log(lease, "it starts again")
    await stream(worker, lease, 1, 2, 3)
    await worker.complete(lease, saved())
    assert [value for _, value in await values_of(job)] == [1, 2, 3]


async def test_what_is_too_large_for_the_socket_is_fetched(
    worker: Worker, wire: Wire, client: interlace.Client
) -> None:
    job = await asyncio.to_thread(submit, client)
    lease = await worker.start()
    large = torch.arange(2000)
    staged = worker.state.values.stage()
    staged.write_bytes(bytes_of(large))
    size = staged.stat().st_size
    await worker.state.values.put(job.id, 1, staged)
    assert await worker.state.queue.record(lease, Saved(number=1, name="large", size=size))
    await worker.complete(lease, saved(x=torch.rand(2000)))
    ((name, value),) = await values_of(job)
    assert (name, torch.equal(value, large)) == ("large", True)
    assert (await job.aresult())["x"].shape == (2000,)


async def test_many_jobs_over_one_socket(worker: Worker, wire: Wire, client: interlace.Client) -> None:
    jobs = [await asyncio.to_thread(submit, client) for _ in range(20)]
    await asyncio.to_thread(until, lambda: wire.connections >= 2, "both connections")
    for number in range(20):
        lease = await worker.start()
        await stream(worker, lease, 1)
        await worker.complete(lease, saved(x=number))
    results = await asyncio.gather(*(job.aresult() for job in jobs))
    assert [result["x"] for result in results] == list(range(20))
    assert wire.connections == 2  # one for HTTP, one for the socket


async def test_whoever_follows_a_job_again_gets_the_same(worker: Worker, client: interlace.Client) -> None:
    job = await asyncio.to_thread(submit, client)
    lease = await worker.start()
    await stream(worker, lease, 1)
    first = job.avalues()
    assert (await anext(first)).value == 1
    await asyncio.to_thread(job.leave)
    assert client.follow(job.id) is job
    await stream(worker, lease, 2)
    await worker.complete(lease, saved(x=1))
    assert [value async for _, value in first] == [2]
    assert client.follow(job.id) is job
    assert await client.follow(job.id).aresult() == {"x": 1}
    with interlace.connect(client.url) as another:
        again = another.follow(job.id)
        assert [value for _, value in await values_of(again)] == [1, 2]


async def test_how_a_job_fails(worker: Worker, client: interlace.Client) -> None:
    failing, cancelled = [await asyncio.to_thread(submit, client) for _ in range(2)]
    await worker.end(await worker.start(), "ValueError: no")
    with pytest.raises(interlace.JobFailed, match="ValueError: no"):
        await failing.aresult()
    await asyncio.to_thread(cancelled.cancel)
    end = await asyncio.to_thread(cancelled.wait, DEADLINE)
    assert end.state is cancelled.state is JobState.CANCELLED
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.01 s"):
        await asyncio.to_thread((await asyncio.to_thread(submit, client)).wait, 0.01)


async def test_a_client_that_is_closed_lets_its_jobs_go_on(worker: Worker, client: interlace.Client) -> None:
    job = await asyncio.to_thread(submit, client)
    await asyncio.to_thread(client.close)
    with pytest.raises(interlace.Unreachable, match="the job goes on"):
        await job.aresult()
    lease = await worker.start()
    assert lease.job.id == job.id


async def test_a_server_that_asks_for_a_key(tmp_path: Path, redis_url: str) -> None:
    with gateway_process.running(tmp_path, redis_url) as gateway:
        gateway_process.mint(redis_url, gateway.config.redis.prefix)
        with interlace.connect(gateway.url, "il-nobody") as client:
            with pytest.raises(interlace.Refused, match="API key"):
                await asyncio.to_thread(submit, client)
            with pytest.raises(interlace.Refused, match="API key"):
                await client.follow("0" * 32).aresult()


async def test_more_jobs_are_followed_than_a_socket_takes(gateway: Gateway, worker: Worker) -> None:
    with interlace.connect(gateway.url) as client:
        jobs = await asyncio.to_thread(lambda: [submit(client) for _ in range(MORE_THAN_A_SOCKET_TAKES)])
        for job in (jobs[0], jobs[-1]):  # once more, which tells nothing twice
            assert await asyncio.to_thread(client.follow, job.id) is job
        for _ in jobs:
            await worker.complete(await worker.start(), saved(x=1))
        async with asyncio.timeout(DEADLINE):
            assert [await job.aresult() for job in jobs] == [{"x": 1}] * len(jobs)
        for job in jobs:
            told = list(job.events())
            assert len(told) == len(set(told))
