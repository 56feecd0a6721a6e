"""What a gateway shows of itself: metrics in Prometheus' format, an id for each request, a JSON line for each event."""

import asyncio
import json
import math
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import gateway_process
import httpx
import pytest
from gateway_process import DEADLINE, HEADERS, KEY, Gateway, Worker, mint, publish, saved, until, whole_lines
from prometheus_client.parser import text_string_to_metric_families

from interlace_state.models import ModelState, Replica
from interlace_state.store import State, open_state

GatewayFactory = Callable[..., AbstractContextManager[Gateway]]
MODEL = str(KEY)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Gateway]:
    """A gateway whose counters no other module's requests move."""
    with gateway_process.running(tmp_path_factory.mktemp("watched"), redis_url, store={"inline_bytes": 4096}) as one:
        yield one


@pytest.fixture
async def own_state(watched: Gateway) -> AsyncIterator[State]:
    async with open_state(watched.config) as state:
        await publish(state, watched.config)
        yield state


def samples(gateway: Gateway, path: str = "/metrics") -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels, from a text of which each family is said once."""
    found = gateway.get(path)
    assert found.status_code == 200, found.text
    assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(found.text))
    assert len({family.name for family in families}) == len(families)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(gateway: Gateway, name: str, path: str = "/metrics", **labels: str) -> float:
    return samples(gateway, path).get((name, frozenset(labels.items())), math.nan)


def requests(gateway: Gateway, route: str, method: str, status: str) -> float:
    return samples(gateway).get(
        ("interlace_requests_total", frozenset({"route": route, "method": method, "status": status}.items())), 0.0
    )


def test_requests_by_route_and_outcome(watched: Gateway) -> None:
    before = requests(watched, "/response/{job_id}", "GET", "404")
    for number in range(3):
        assert watched.get(f"/response/{number:032x}").status_code == 404
    assert requests(watched, "/response/{job_id}", "GET", "404") == before + 3
    labels = {"route": "/response/{job_id}", "method": "GET"}
    assert value(watched, "interlace_request_duration_seconds_count", **labels) == before + 3
    # The client says no version, and is refused before its request finds a route.
    assert watched.post(headers={}).status_code == 400
    assert requests(watched, "/request", "POST", "400") == 1


def test_strangers_make_no_series(watched: Gateway) -> None:
    before = len(samples(watched))
    for number in range(20):
        assert watched.get(f"/made-up/{number}").status_code == 404
    for method in ("PROPFIND", "REPORT"):
        assert httpx.request(method, f"{watched.url}/ping", timeout=DEADLINE).status_code == 405
    after = [labels for name, labels in samples(watched) if name == "interlace_requests_total"]
    assert requests(watched, "unmatched", "GET", "404") == 20
    assert requests(watched, "/ping", "other", "405") == 2
    assert not [labels for labels in after if any("made-up" in text or "PROP" in text for _, text in labels)]
    assert len(samples(watched)) < before + 40


async def test_a_request_has_one_name_everywhere(watched: Gateway, own_state: State) -> None:
    worker = Worker(own_state)
    answer = await asyncio.to_thread(watched.post, headers=HEADERS | {"X-Request-ID": "from_the-client-1"})
    assert answer.headers["x-request-id"] == "from_the-client-1"
    lease = await worker.start()
    assert lease.job.request_id == "from_the-client-1"
    [line] = [line for line in watched.actions("accepted") if line["job"] == lease.job.id]
    assert line["request_id"] == "from_the-client-1"
    await worker.complete(lease, saved())


@pytest.mark.parametrize("sent", ["", "a b", "x" * 65, "line\u00e9", "<script>"])
def test_an_id_that_is_none_is_replaced(watched: Gateway, sent: str) -> None:
    first = httpx.get(f"{watched.url}/ping", headers=[(b"X-Request-ID", sent.encode("latin-1"))])
    second = httpx.get(f"{watched.url}/ping")
    assert first.headers["x-request-id"] not in ("", sent, second.headers["x-request-id"])
    assert len(second.headers["x-request-id"]) == 32


def test_a_refusal_carries_the_id_too(watched: Gateway) -> None:
    refused = httpx.get(f"{watched.url}/ping", headers={"Host": "elsewhere.example", "X-Request-ID": "mine"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (400, "mine")


def test_every_line_of_the_log_is_an_object(watched: Gateway) -> None:
    watched.get("/ping")
    lines = [json.loads(line) for line in whole_lines(watched.log)]
    assert lines
    assert all({"ts", "level", "event"} <= line.keys() for line in lines)


async def test_the_queue_as_it_is_now(watched: Gateway, own_state: State) -> None:
    worker = Worker(own_state)
    before = value(watched, "interlace_jobs_accepted_total", model=MODEL)
    for _ in range(3):
        assert (await asyncio.to_thread(watched.post)).status_code == 200
    lease = await worker.start()

    def seen() -> list[float]:
        found = samples(watched)
        waiting, running = (
            found["interlace_queue_jobs", frozenset({("model", MODEL), ("state", state)})]
            for state in ("waiting", "running")
        )
        return [waiting, running, found["interlace_queue_oldest_age_seconds", frozenset({("model", MODEL)})]]

    waiting, running, age = seen()
    assert (waiting, running) == (2, 1)
    assert 0 < age < DEADLINE
    if math.isnan(before):
        before = 0
    assert value(watched, "interlace_jobs_accepted_total", model=MODEL) == before + 3
    await worker.complete(lease, saved())
    for _ in range(2):
        await worker.complete(await worker.start(), saved())
    assert seen() == [0, 0, 0]
    assert value(watched, "interlace_replicas", model=MODEL, state="ready") == 1
    assert value(watched, "interlace_model_failed", model=MODEL) == 0


async def test_the_stores_disk(watched: Gateway) -> None:
    disk = shutil.disk_usage(watched.config.state_dir)
    assert 0 < value(watched, "interlace_store_free_bytes") <= disk.total


async def test_results_that_are_delivered(watched: Gateway, own_state: State) -> None:
    worker = Worker(own_state)
    before = {way: value(watched, "interlace_result_delivered_bytes_total", way=way) for way in ("socket", "link")}
    socket = await asyncio.to_thread(watched.connect)
    session = json.loads(await asyncio.to_thread(socket.recv))["session_id"]
    assert value(watched, "interlace_streams") == 1
    await asyncio.to_thread(watched.post, session_id=session)
    await worker.complete(await worker.start(), saved(small=1))
    while not isinstance(frame := await asyncio.to_thread(socket.recv), bytes):
        pass
    await asyncio.to_thread(socket.close)

    job_id = (await asyncio.to_thread(watched.post)).json()["id"]
    await worker.complete(await worker.start(), result := saved(large=bytes(range(256)) * 64))
    url = (await asyncio.to_thread(watched.get, f"/response/{job_id}")).json()["data"]
    assert httpx.get(url, timeout=DEADLINE).content == result

    after = {way: value(watched, "interlace_result_delivered_bytes_total", way=way) for way in ("socket", "link")}
    assert after == {"socket": before["socket"] + len(frame), "link": before["link"] + len(result)}

    def both_over() -> bool:
        by_link = value(watched, "interlace_result_delivery_seconds_count", way="link")
        return by_link >= 1 and requests(watched, "/subscribe", "WEBSOCKET", "101") >= 1

    await asyncio.to_thread(until, both_over, "the stream's and the download's end")
    assert value(watched, "interlace_streams") == 0


async def test_replicas_are_told_apart(watched: Gateway, own_state: State) -> None:
    for number in (1, 2):
        replica = Replica(id=f"shown-{number}", state=ModelState.READY, pid=1, node="n")
        await own_state.models.beat(KEY, replica)
        text = (
            "# HELP interlace_jobs_total Jobs.\n# TYPE interlace_jobs_total counter\n"
            f'interlace_jobs_total{{outcome="completed"}} {number}\n'
            "# HELP interlace_job_wait_seconds Wait.\n# TYPE interlace_job_wait_seconds histogram\n"
            f'interlace_job_wait_seconds_bucket{{le="+Inf"}} {number}\n'
            f"interlace_job_wait_seconds_sum 0.5\ninterlace_job_wait_seconds_count {number}\n"
        )
        await own_state.metrics.publish(replica.id, text.encode())
    found = samples(watched, "/metrics/workers")
    for number in (1, 2):
        whose = {("model", MODEL), ("replica", f"shown-{number}")}
        assert found["interlace_jobs_total", frozenset({("outcome", "completed"), *whose})] == number
        assert found["interlace_job_wait_seconds_bucket", frozenset({("le", "+Inf"), *whose})] == number
    await own_state.models.leave(KEY, "shown-1")
    replicas = {dict(labels)["replica"] for _, labels in samples(watched, "/metrics/workers")}
    assert replicas == {"shown-2"}


async def test_a_snapshot_is_bounded(own_state: State) -> None:
    with pytest.raises(ValueError, match="1,048,577 bytes; at most 1,048,576"):
        await own_state.metrics.publish("large", b"#" * ((1 << 20) + 1))


@pytest.mark.parametrize("path", ["/metrics", "/metrics/workers"])
def test_only_an_admin_reads_them(start_gateway: GatewayFactory, redis_url: str, tmp_path: Path, path: str) -> None:
    with start_gateway() as gateway:
        assert gateway.get(path).status_code == 200  # on loopback, before the first key
        prefix = gateway.config.redis.prefix
        user = mint(redis_url, prefix, role="user")
        admin = mint(redis_url, prefix, role="admin")
        assert gateway.get(path).status_code == 401
        refused = httpx.get(f"{gateway.url}{path}", headers={"Authorization": f"Bearer {user}"}, timeout=DEADLINE)
        assert (refused.status_code, refused.json()) == (404, {"detail": "Not Found"})
        shown = httpx.get(f"{gateway.url}{path}", headers={"Authorization": f"Bearer {admin}"}, timeout=DEADLINE)
        assert shown.status_code == 200
