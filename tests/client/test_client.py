"""`interlace.Client` against a real gateway, over a network that drops connections."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import gateway_process
import pytest
from gateway_process import DEADLINE, KEY, Gateway, Worker, mint, saved, until
from wire import Wire, cut

import interlace
from interlace import Refused, Unreachable
from interlace.protocol.errors import InvalidRequest
from interlace.protocol.event import Ended, Event, Log
from interlace.protocol.hosting import ModelEvent, Moment, Phase
from interlace.protocol.job import JobState
from interlace_state.store import open_state


@pytest.fixture
async def worker(gateway: Gateway) -> AsyncIterator[Worker]:
    async with open_state(gateway.config) as state:
        await gateway_process.publish(state, gateway.config)
        yield Worker(state)
        await state.queue.fail_all(KEY, "The test has ended.")


@pytest.fixture
def client(gateway: Gateway) -> Iterator[interlace.Client]:
    with interlace.Client(gateway.url) as client:
        yield client


def post(gateway: Gateway) -> str:
    return str(gateway.post().json()["id"])


@pytest.fixture
def wire(gateway: Gateway) -> Iterator[Wire]:
    wire = Wire(gateway)
    yield wire
    wire.close()


class Reader:
    """Follows a job in a thread."""

    def __init__(self, client: interlace.Client, job_id: str, **options: Any) -> None:
        self.seen: list[tuple[str, Event]] = []
        self.error: Exception | None = None
        self._events = client.events(job_id, **options)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            self.seen.extend(self._events)
        except Exception as error:  # noqa: BLE001  the test looks at it
            self.error = error

    def texts(self) -> list[str]:
        return [event.text for _, event in list(self.seen) if isinstance(event, Log)]

    async def ended(self) -> list[tuple[str, Event]]:
        await asyncio.to_thread(self._thread.join, DEADLINE)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.seen


def test_it_is_loaded_on_first_use() -> None:
    code = (
        "import sys, interlace; light = 'httpx' not in sys.modules;"
        "print(light, interlace.Client.__module__, 'httpx' in sys.modules, hasattr(interlace, 'nothing'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "interlace._client", "True", "False"]


def test_it_reads_what_nnsight_reads(
    gateway: Gateway, redis_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gateway_process.running(tmp_path, redis_url) as locked:
        monkeypatch.setenv("NDIF_HOST", f"{locked.url}/")
        monkeypatch.setenv("NDIF_API_KEY", mint(redis_url, locked.config.redis.prefix, "lab-a"))
        with interlace.Client() as client:
            assert client.whoami()["email"] == "lab-a"
            with pytest.raises(Refused, match="--role admin") as forbidden:
                client.pause("lab/tiny")
            assert forbidden.value.http_status == 403
        monkeypatch.delenv("NDIF_API_KEY")
        with interlace.Client() as client, pytest.raises(Refused, match="API key") as unauthorized:
            list(client.jobs())
        assert unauthorized.value.http_status == 401


@pytest.mark.parametrize("url", [None, "", "127.0.0.1:8000", "ftp://host"])
def test_a_url_that_is_none(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NDIF_HOST", raising=False)
    with pytest.raises(ValueError, match="NDIF_HOST"):
        interlace.Client(url)


async def test_jobs_are_listed_over_pages(gateway: Gateway, worker: Worker, client: interlace.Client) -> None:
    posted = [await asyncio.to_thread(post, gateway) for _ in range(60)]
    found = [job.id for job in await asyncio.to_thread(list, client.jobs(model=KEY.slug, state="queued"))]
    assert sorted(found) == sorted(posted)
    assert await asyncio.to_thread(list, client.jobs(model="lab/nothing")) == []
    assert (await asyncio.to_thread(client.job, posted[0])).state is JobState.QUEUED


async def test_cancel_stops_and_never_removes(gateway: Gateway, worker: Worker, client: interlace.Client) -> None:
    waits, runs = await asyncio.to_thread(post, gateway), await asyncio.to_thread(post, gateway)
    held = await worker.start()
    assert held.job.id == waits
    await worker.complete(held, saved(x=1))
    assert (await asyncio.to_thread(client.cancel, waits)).state is JobState.COMPLETED
    assert (await asyncio.to_thread(client.cancel, runs)).state is JobState.CANCELLED
    assert (await asyncio.to_thread(client.cancel, runs)).state is JobState.CANCELLED
    assert await asyncio.to_thread(client.delete, waits) is None
    with pytest.raises(Refused) as gone:
        await asyncio.to_thread(client.job, waits)
    assert gone.value.http_status == 404


async def test_a_dropped_stream_goes_on_behind_the_last_event(gateway: Gateway, worker: Worker, wire: Wire) -> None:
    job_id = await asyncio.to_thread(post, gateway)
    held = await worker.start()
    lines = [f"line {number} \N{LINE SEPARATOR}\r\n data: x" for number in range(40)]
    with interlace.Client(wire.url) as client:
        reader = Reader(client, job_id)
        await asyncio.to_thread(until, lambda: reader.seen, "an event")
        for line in lines:
            await worker.log(held, line)
        for number in range(3):
            await cut(wire, more=1)
            await worker.log(held, f"after cut {number}")
        wire.broken = True  # for a while, nobody answers
        await cut(wire, more=2)
        await worker.complete(held, saved(x=1))
        await cut(wire, more=1)
        wire.broken = False
        seen = await reader.ended()
    lines += [f"after cut {number}" for number in range(3)]
    assert reader.texts() == lines
    assert isinstance(seen[-1][1], Ended)
    with interlace.Client(gateway.url) as client:
        assert await asyncio.to_thread(list, client.events(job_id)) == seen
        assert await asyncio.to_thread(list, client.events(job_id, after=seen[-3][0])) == seen[-2:]
        assert await asyncio.to_thread(list, client.logs(job_id)) == lines


async def test_without_follow_it_ends_with_what_there_is(
    gateway: Gateway, worker: Worker, client: interlace.Client
) -> None:
    job_id = await asyncio.to_thread(post, gateway)
    held = await worker.start()
    await worker.log(held, "one")
    assert await asyncio.to_thread(list, client.logs(job_id, follow=False)) == ["one"]
    await worker.log(held, "two")
    assert await asyncio.to_thread(list, client.logs(job_id, follow=False)) == ["one", "two"]


async def test_a_stream_of_no_job_is_refused_at_once(client: interlace.Client) -> None:
    with pytest.raises(Refused, match="There is no job") as unknown:
        await asyncio.to_thread(list, client.events("0" * 32))
    assert unknown.value.http_status == 404


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_would_be_another_url_is_no_name(client: interlace.Client, name: str) -> None:
    for ask in (client.job, client.delete, client.model, client.artifacts.delete, client.lake.card):
        with pytest.raises(InvalidRequest, match="names nothing below /v1/"):
            ask(name)


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with interlace.Client(f"http://127.0.0.1:{port}") as client, pytest.raises(Unreachable, match=str(port)):
        client.whoami()


async def test_an_operators_switches(worker: Worker, client: interlace.Client) -> None:
    assert (await asyncio.to_thread(client.pause, KEY.repo_id))["paused"] is True
    assert (await asyncio.to_thread(client.resume, KEY.repo_id))["paused"] is False
    assert (await asyncio.to_thread(client.drain, "r1"))["drained"] is True
    assert (await asyncio.to_thread(client.undrain, "r1"))["drained"] is False
    await asyncio.to_thread(lambda: client.set_tenant("lab-a", weight=3))
    changed = await asyncio.to_thread(lambda: client.set_tenant("lab-a", limits={"running_jobs": 2}))
    assert (changed["weight"], changed["limits"]["running_jobs"]) == (3, 2)
    assert await asyncio.to_thread(client.tenant, "lab-a") == changed


async def test_what_happens_to_models_goes_on_over_dropped_connections(
    gateway: Gateway, worker: Worker, wire: Wire
) -> None:
    seen: list[tuple[str, ModelEvent]] = []

    def read() -> None:
        with interlace.Client(wire.url) as client:
            for found in client.model_events(KEY.repo_id):
                seen.append(found)
                if found[1].moment is not None and found[1].moment.text == "the last":
                    return

    async def say(text: str) -> None:
        await worker.state.desired.say(KEY, Moment(phase=Phase.FAILED, text=text, at=1.0))

    await say("of before")
    reading = asyncio.create_task(asyncio.to_thread(read))
    await asyncio.to_thread(until, lambda: seen, "an event")
    for text in ("after a cut", "after another", "the last"):
        await cut(wire, more=1)
        await say(text)
    await asyncio.wait_for(reading, DEADLINE)
    texts = [event.moment.text for _, event in seen if event.moment is not None]
    assert texts == ["of before", "after a cut", "after another", "the last"]
    with interlace.Client(gateway.url) as client:
        assert await asyncio.to_thread(list, client.model_events(follow=False)) == seen
        assert await asyncio.to_thread(list, client.model_events(after=seen[1][0], follow=False)) == seen[2:]
