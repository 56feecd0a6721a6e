"""A download that broke off goes on where it was: byte ranges of results, by link and by job."""

import asyncio
import os
from pathlib import Path

import httpx
import pytest
from gateway_process import Gateway, Worker
from wire import Wire, cut

import interlace
from interlace.protocol.event import Saved

SIZE = 3_000_000


@pytest.fixture
async def result(gateway: Gateway, worker: Worker) -> tuple[str, str, bytes]:
    """A job's id, the path of its result's link, and the result."""
    job_id = (await asyncio.to_thread(gateway.post)).json()["id"]
    data = os.urandom(SIZE)
    await worker.complete(await worker.start(), data)
    link = (await asyncio.to_thread(gateway.get, f"/response/{job_id}")).json()["data"]
    return job_id, f"/results/{link.rpartition('/')[2]}", data


def get(gateway: Gateway, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{gateway.url}{path}", headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("asked", "first", "behind"),
    [
        ("bytes=0-", 0, SIZE),
        ("bytes=1000000-", 1_000_000, SIZE),
        ("bytes=10-19", 10, 20),
        ("bytes=2999999-", SIZE - 1, SIZE),
        ("bytes=10-99999999", 10, SIZE),
        ("bytes=-5", SIZE - 5, SIZE),
        ("bytes=-99999999", 0, SIZE),
    ],
)
@pytest.mark.parametrize("by", ["link", "job"])
async def test_the_bytes_that_are_asked_for(
    gateway: Gateway, result: tuple[str, str, bytes], asked: str, first: int, behind: int, by: str
) -> None:
    job_id, link, data = result
    answer = get(gateway, link if by == "link" else f"/v1/jobs/{job_id}/result", range=asked)
    assert answer.status_code == 206
    assert answer.content == data[first:behind]
    assert answer.headers["content-range"] == f"bytes {first}-{behind - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(behind - first)


@pytest.mark.parametrize("asked", ["", "bytes=", "bytes=5-4", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "bytes=-"])
async def test_what_is_no_single_range_is_answered_whole(
    gateway: Gateway, result: tuple[str, str, bytes], asked: str
) -> None:
    answer = get(gateway, result[1], range=asked)
    assert (answer.status_code, answer.content == result[2]) == (200, True)
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=999999999999-", "bytes=-0"])
async def test_bytes_that_are_not_there(gateway: Gateway, result: tuple[str, str, bytes], asked: str) -> None:
    answer = get(gateway, result[1], range=asked)
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{SIZE}"
    assert "3,000,000 bytes" in answer.json()["detail"]


async def test_a_part_of_something_else_is_not_completed(gateway: Gateway, result: tuple[str, str, bytes]) -> None:
    job_id, link, data = result
    assert get(gateway, link, range="bytes=5-9", if_range=f'"{job_id}"').status_code == 206
    whole = get(gateway, link, range="bytes=5-9", if_range='"another"')
    assert (whole.status_code, whole.content == data) == (200, True)


async def test_our_client_goes_on_where_it_was(
    gateway: Gateway, result: tuple[str, str, bytes], tmp_path: Path
) -> None:
    job_id, _, data = result
    file = tmp_path / "saved"
    with interlace.Client(gateway.url) as client:
        # What came before is not fetched again: it would come back right.
        part = tmp_path / f"saved.{job_id}.part"
        part.write_bytes(bytes(1_000_000))
        assert await asyncio.to_thread(client.download, job_id, file) == SIZE
        assert file.read_bytes() == bytes(1_000_000) + data[1_000_000:]
        assert not part.exists()
        part.write_bytes(data)
        assert await asyncio.to_thread(client.download, job_id, file) == SIZE
        assert file.read_bytes() == data
        with pytest.raises(interlace.protocol.errors.InterlaceError, match="There is no job"):
            await asyncio.to_thread(client.download, "0" * 32, file)


@pytest.mark.parametrize("stored", [False, True])
async def test_the_rest_of_a_value(gateway: Gateway, worker: Worker, stored: bool) -> None:
    job_id = (await asyncio.to_thread(gateway.post)).json()["id"]
    lease, data = await worker.start(), os.urandom(1000)

    async def put(value: bytes) -> None:
        staged = worker.state.values.stage()
        staged.write_bytes(value)
        await worker.state.values.put(job_id, 1, staged)

    if stored:
        await put(data)
    event = Saved(number=1, name="x", size=len(data), data=None if stored else data)
    assert await worker.state.queue.record(lease, event)
    path = f"/v1/jobs/{job_id}/values/1"
    whole = await asyncio.to_thread(get, gateway, path)
    assert (whole.status_code, whole.content) == (200, data)
    rest = await asyncio.to_thread(get, gateway, path, range="bytes=400-", if_range=whole.headers["etag"])
    assert (rest.status_code, rest.content) == (206, data[400:])
    assert rest.headers["content-range"] == "bytes 400-999/1000"
    assert (await asyncio.to_thread(get, gateway, path, range="bytes=1000-")).status_code == 416
    if stored:  # the job has run again: the rest of the new value does not go with the beginning of the old one
        await put(os.urandom(1000))
        anew = await asyncio.to_thread(get, gateway, path, range="bytes=400-", if_range=whole.headers["etag"])
        assert (anew.status_code, len(anew.content)) == (200, 1000)


async def test_a_value_whose_download_breaks_off_is_fetched_in_two(gateway: Gateway, worker: Worker) -> None:
    job_id = (await asyncio.to_thread(gateway.post)).json()["id"]
    lease, data = await worker.start(), os.urandom(400_000)
    staged = worker.state.values.stage()
    staged.write_bytes(data)
    await worker.state.values.put(job_id, 1, staged)
    assert await worker.state.queue.record(lease, Saved(number=1, name="x", size=len(data)))
    wire = Wire(gateway)
    with interlace.Client(wire.url) as client:
        fetching = asyncio.create_task(asyncio.to_thread(client.fetch, job_id, "values/1"))
        await cut(wire, more=1)
        assert await fetching == data
    wire.close()
