"""A store that is full takes no new jobs, says why and when to come back; jobs that it took come to their end."""

import os
import resource
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch
from gateway_process import PICKLE, Worker, publish, saved, until
from uploads import ADAPTER, upload

from interlace.protocol.event import Ended
from interlace.protocol.job import JobState
from interlace_state.store import open_state


def begun(url: str, body: httpx.Request, first: bytes = b"") -> HTTPConnection:
    """A request of which no more than its head and the first bytes have been sent."""
    connection = HTTPConnection(url.removeprefix("http://"))
    connection.putrequest("POST", body.url.path)
    for name in ("content-type", "content-length"):
        connection.putheader(name, body.headers[name])
    connection.endheaders(first)
    return connection


def of_size(size: int) -> dict[str, bytes]:
    """An adapter whose weights take so many bytes, or some more."""
    weights = {
        "base_model.model.a.lora_A.weight": torch.ones(2, size // 8),
        "base_model.model.a.lora_B.weight": torch.ones(8, 2),
    }
    return ADAPTER | {"adapter_model.safetensors": safetensors.torch.save(weights)}


async def test_new_jobs_are_refused_and_running_ones_end(start_gateway: Any) -> None:
    with start_gateway(store={"max_bytes": 1000}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            worker = Worker(state)
            taken = gateway.post(PICKLE, compress=False)
            assert taken.status_code == 200, taken.text
            lease = await worker.start()
            refused = gateway.post(PICKLE + bytes(2000), compress=False)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "60"
            assert "of 1,000 bytes (`store.max_bytes`)" in refused.json()["detail"]
            assert await state.queue.length(worker.key) == 1
            await worker.complete(lease, saved())
            last = await state.events.last(lease.job.id, "local")
            assert isinstance(last, Ended)
            assert last.state is JobState.COMPLETED


async def test_a_disk_without_room_is_a_refusal(start_gateway: Any) -> None:
    with start_gateway(store={"min_free_bytes": 1 << 49}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            refused = gateway.post()
            assert refused.status_code == 503
            assert "store.min_free_bytes" in refused.json()["detail"]


def test_what_the_disk_has_no_room_for_is_refused_before_it_comes(start_gateway: Any) -> None:
    with start_gateway(store={"min_free_bytes": 1 << 49}, gateway={"stall_seconds": 5}) as gateway:
        files = [("files", part) for part in of_size(3 << 20).items()]
        connection = begun(
            gateway.url, httpx.Request("POST", f"{gateway.url}/v1/artifacts", data={"kind": "peft"}, files=files)
        )
        refused = connection.getresponse()
        assert (refused.status, refused.headers["retry-after"]) == (503, "60")
        assert b"store.min_free_bytes" in refused.read()
        connection.close()


def test_an_upload_waits_for_its_end_on_the_disk_of_the_store(start_gateway: Any) -> None:
    """A container's `/tmp` is smaller than what may be sent."""
    files = [("files", part) for part in of_size(3 << 20).items()]
    with start_gateway() as gateway:
        staging = Path(gateway.config.store_url) / "staging"

        def opened() -> list[str]:
            fds = Path(f"/proc/{gateway.process.pid}/fd")
            paths = [os.path.realpath(fds / fd) for fd in os.listdir(fds)]
            return [path for path in paths if path.startswith(f"{os.path.realpath(staging)}/")]

        whole = httpx.Request("POST", f"{gateway.url}/v1/artifacts", data={"kind": "peft"}, files=files)
        connection = begun(gateway.url, whole, whole.read()[: 2 << 20])
        until(opened, "an upload in the store's own folder")
        connection.send(whole.read()[2 << 20 :])
        assert connection.getresponse().status == 201
        connection.close()
        assert os.listdir(staging) == []


@pytest.mark.parametrize(("size", "room"), [(3 << 20, 2 << 20), (500_000, 250_000)])
def test_an_upload_that_the_disk_does_not_take_is_a_refusal(start_gateway: Any, size: int, room: int) -> None:
    """The kernel bounds the gateway's files, as a full disk does: while the body comes, and when it is kept."""
    with start_gateway() as gateway:
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (room, room))
        refused = upload(gateway.url, of_size(size))
        assert (refused.status_code, refused.headers.get("retry-after")) == (503, "60"), refused.text
        assert "takes nothing: File too large" in refused.json()["detail"]
        assert upload(gateway.url).status_code == 201
        assert os.listdir(Path(gateway.config.store_url) / "staging") == []
