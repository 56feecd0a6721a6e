"""`/v1/jobs`: own jobs are seen, followed, stopped and removed; those of others are as none. An operator sees all."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gateway_process import DEADLINE, HEADERS, KEY, PICKLE, Gateway, Worker, mint, publish, saved, until

from interlace_state.store import State, open_state

Stream = list[tuple[str, str, dict[str, Any]]]


def call(gateway: Gateway, method: str, path: str, key: str = "", **options: Any) -> httpx.Response:
    headers = {"ndif-api-key": key} if key else {}
    return httpx.request(
        method, f"{gateway.url}{path}", headers=headers | options.pop("headers", {}), timeout=DEADLINE, **options
    )


def post(gateway: Gateway, key: str = "", **changes: Any) -> str:
    return str(gateway.post(headers={**HEADERS, "ndif-api-key": key} if key else None, **changes).json()["id"])


def parsed(lines: Iterator[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(id, event, data) of server-sent events."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}


def events(gateway: Gateway, job_id: str, query: str = "", key: str = "", **headers: str) -> Stream:
    """All of a stream that ends."""
    answer = call(gateway, "GET", f"/v1/jobs/{job_id}/events{query}", key, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return list(parsed(iter(answer.text.split("\n"))))


async def test_own_jobs_are_listed_and_shown(gateway: Gateway, worker: Worker) -> None:
    first = await asyncio.to_thread(post, gateway)
    await asyncio.sleep(0.002)  # the index counts milliseconds
    second = await asyncio.to_thread(post, gateway)
    page = (await asyncio.to_thread(call, gateway, "GET", "/v1/jobs?limit=1")).json()
    assert [job["id"] for job in page["jobs"]] == [second]
    rest = (await asyncio.to_thread(call, gateway, "GET", f"/v1/jobs?limit=1&cursor={page['next']}")).json()
    assert [job["id"] for job in rest["jobs"]] == [first]
    assert page["jobs"][0]["place"] == {"ahead": 1, "seconds": None, "reason": ""}
    await worker.complete(await worker.start(), saved(x=1))
    shown = (await asyncio.to_thread(call, gateway, "GET", f"/v1/jobs/{first}")).json()
    assert (shown["state"], shown["model"], shown["place"]) == ("completed", KEY.repo_id, None)
    assert shown["result_size"] == len(saved(x=1))
    assert shown["submitted"] <= shown["started"] <= shown["ended"]
    for query, found in (("state=completed", first), ("state=queued", second)):
        page = (await asyncio.to_thread(call, gateway, "GET", f"/v1/jobs?model={KEY.slug}&limit=1&{query}")).json()
        assert [job["id"] for job in page["jobs"]] == [found]
    await asyncio.to_thread(call, gateway, "DELETE", f"/v1/jobs/{second}")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/jobs?limit=0", "`limit` is '0', expected at least 1."),
        ("/v1/jobs?limit=201", "`limit` is '201', expected at most 200."),
        ("/v1/jobs?cursor=x", "`cursor` is 'x', expected the `next` of the page before."),
        ("/v1/jobs?state=lost", "`state` is 'lost', expected 'received',"),
        ("/v1/jobs?tenant=A", "`tenant` is 'A', expected 1 to 63 of a-z, 0-9,"),
        (f"/v1/jobs/{'0' * 32}/events?after=x", "`after` is 'x', expected the id of an event"),
        ("/v1/methods/A", "`name` is 'A', expected the name of a method, as `interlace methods` shows them."),
        ("/v1/models/-", "`model` is '-', expected a repo id or a slug, as `interlace models` shows them."),
        (f"/v1/lake/{'0' * 15}", "`entry_id` is '000000000000000', expected 16 hex digits, as `interlace lake"),
        (f"PUT /v1/lake/{'0' * 16}/tags/A", "`tag` is 'A', expected 1 to 63 of a-z, 0-9,"),
        (
            "/v1/tenants/A",
            "`tenant` is 'A', expected 1 to 63 of a-z, 0-9, `.`, `_` and `-`, a letter or a digit first",
        ),
    ],
)
async def test_a_wrong_word_is_told_what_would_be_right(gateway: Gateway, state: State, path: str, said: str) -> None:
    answer = await asyncio.to_thread(call, gateway, *("GET " + path).split()[-2:])
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


async def test_what_is_no_id_is_told_what_one_is(gateway: Gateway, state: State) -> None:
    answer = await asyncio.to_thread(call, gateway, "GET", "/v1/jobs/x")
    assert answer.status_code == 422
    assert "`job_id` is 'x', expected 32 hex digits" in answer.json()["detail"]


async def test_jobs_of_others_are_as_none(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            prefix = gateway.config.redis.prefix
            ours, theirs = mint(redis_url, prefix, "lab-a"), mint(redis_url, prefix, "lab-b")
            admin = mint(redis_url, prefix, "ops", role="admin")
            mine, other = post(gateway, ours), post(gateway, theirs)
            for method, path in (
                ("GET", ""),
                ("DELETE", ""),
                ("DELETE", "?forget=false"),
                ("GET", "/events"),
                ("GET", "/result"),
            ):
                answers = [
                    call(gateway, method, f"/v1/jobs/{one}{path}", theirs).json()["detail"].replace(one, "X")
                    for one in (mine, "0" * 32)
                ]
                assert answers[0] == answers[1], (method, path)
                assert call(gateway, method, f"/v1/jobs/{mine}{path}", theirs).status_code == 404
                assert call(gateway, method, f"/v1/jobs/{mine}{path}").status_code == 401
            assert [job["id"] for job in call(gateway, "GET", "/v1/jobs", theirs).json()["jobs"]] == [other]
            assert call(gateway, "GET", "/v1/jobs?tenant=lab-a", theirs).status_code == 403
            assert {job["id"] for job in call(gateway, "GET", "/v1/jobs", admin).json()["jobs"]} == {mine, other}
            narrowed = call(gateway, "GET", "/v1/jobs?tenant=lab-a", admin).json()["jobs"]
            assert [(job["id"], job["tenant"]) for job in narrowed] == [(mine, "lab-a")]
            worker = Worker(state)
            await worker.complete(await worker.start(), saved(x=1))
            await worker.complete(await worker.start(), saved(x=1))
            assert call(gateway, "GET", f"/v1/jobs/{mine}/result", ours).content == saved(x=1)
            assert call(gateway, "GET", f"/v1/jobs/{mine}/result", admin).status_code == 404
            assert call(gateway, "GET", f"/v1/jobs/{mine}", admin).json()["tenant"] == "lab-a"


async def test_a_job_is_stopped_whether_it_waits_or_runs(gateway: Gateway, worker: Worker) -> None:
    runs = await asyncio.to_thread(post, gateway)
    held = await worker.start()
    waits = await asyncio.to_thread(post, gateway)
    for job_id in (waits, runs):
        answer = await asyncio.to_thread(call, gateway, "DELETE", f"/v1/jobs/{job_id}")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        (*_, last) = await asyncio.to_thread(events, gateway, job_id)
        assert (last[1], last[2]["state"], last[2]["text"]) == (
            "ended",
            "cancelled",
            "The job was cancelled by its owner.",
        )
        polled = await asyncio.to_thread(gateway.get, f"/response/{job_id}")
        assert polled.json()["status"] == "ERROR"
    assert not await worker.state.queue.renew(held)
    assert await worker.state.queue.length(KEY) == 0


async def test_of_an_ended_job_nothing_is_left(gateway: Gateway, worker: Worker) -> None:
    job_id = await asyncio.to_thread(post, gateway)
    await worker.complete(await worker.start(), saved(x=1))
    link = (await asyncio.to_thread(gateway.get, f"/response/{job_id}")).json()["data"]
    kept = await asyncio.to_thread(call, gateway, "DELETE", f"/v1/jobs/{job_id}?forget=false")
    assert (kept.status_code, kept.json()["state"]) == (200, "completed")
    assert (await asyncio.to_thread(httpx.get, link)).status_code == 200
    gone = await asyncio.to_thread(call, gateway, "DELETE", f"/v1/jobs/{job_id}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await asyncio.to_thread(httpx.get, link)).status_code == 404
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/events", f"/v1/jobs/{job_id}/result", f"/response/{job_id}"):
        assert (await asyncio.to_thread(gateway.get, path)).status_code == 404, path
    names = [path.name for path in gateway.config.state_dir.rglob("*")]
    assert job_id not in names
    assert [name async for name in worker.state.redis.scan_iter(f"*{job_id}*")] == []
    again = await asyncio.to_thread(call, gateway, "DELETE", f"/v1/jobs/{job_id}")
    assert again.status_code == 404


async def test_only_a_completed_job_has_a_result(gateway: Gateway, worker: Worker) -> None:
    job_id = await asyncio.to_thread(post, gateway)
    early = await asyncio.to_thread(gateway.get, f"/v1/jobs/{job_id}/result")
    assert early.status_code == 409
    assert "is queued: only a completed job has a result" in early.json()["detail"]
    await worker.end(await worker.start(), "boom")
    late = await asyncio.to_thread(gateway.get, f"/v1/jobs/{job_id}/result")
    assert (late.status_code, "boom" in late.json()["detail"]) == (409, True)


class Follower:
    """Reads a job's events in a thread, as they come."""

    def __init__(self, gateway: Gateway, job_id: str, **headers: str) -> None:
        self.seen: Stream = []
        self.comments = 0
        self.connected = False
        self.whole = False  # the server ended it, and nothing broke
        self._url = f"{gateway.url}/v1/jobs/{job_id}/events"
        self._headers = headers
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        with httpx.stream("GET", self._url, headers=self._headers, timeout=DEADLINE) as answer:
            self.connected = True
            self.seen.extend(parsed(self._lines(answer)))
        self.whole = True

    def _lines(self, answer: httpx.Response) -> Iterator[str]:
        rest = ""
        for text in answer.iter_text():
            *lines, rest = (rest + text).split("\n")
            self.comments += sum(line.startswith(":") for line in lines)
            yield from lines

    def texts(self) -> list[str]:
        return [data["text"] for _, name, data in list(self.seen) if name == "log"]

    async def ends(self) -> None:
        await asyncio.to_thread(self.thread.join, DEADLINE)
        assert not self.thread.is_alive()
        assert self.whole


async def test_events_come_as_they_happen_and_end_with_the_job(gateway: Gateway, worker: Worker) -> None:
    job_id = await asyncio.to_thread(post, gateway)
    follower = Follower(gateway, job_id)
    held = await worker.start()
    lines = ["one", "two \N{LINE SEPARATOR} three\r", "data: four\n\n"]
    await worker.log(held, *lines)
    await asyncio.to_thread(until, lambda: follower.texts() == lines, "the lines")
    assert follower.thread.is_alive()
    await worker.end(held, "boom")
    await follower.ends()
    assert [name for _, name, _ in follower.seen] == ["state"] * 3 + ["log"] * 3 + ["ended"]
    assert follower.seen[-1][2]["text"] == "boom"
    assert await asyncio.to_thread(events, gateway, job_id) == follower.seen


async def test_a_stream_is_resumed_behind_any_event(gateway: Gateway, worker: Worker) -> None:
    job_id = await asyncio.to_thread(post, gateway)
    held = await worker.start()
    await worker.log(held, "one", "two")
    now = await asyncio.to_thread(events, gateway, job_id, "?follow=false")
    assert [data.get("text") for *_, data in now][-2:] == ["one", "two"]
    live = Follower(gateway, job_id, **{"last-event-id": now[-2][0]})
    ahead = Follower(gateway, job_id, **{"last-event-id": "9999999999999999999-9"})
    await asyncio.to_thread(until, lambda: live.texts() == ["two"], "the event behind")
    await asyncio.to_thread(until, lambda: ahead.connected, "a connection")
    await worker.log(held, "three")
    await asyncio.to_thread(until, lambda: ahead.texts() == ["three"], "an event behind one that never was")
    await worker.complete(held, saved(x=1))
    await live.ends()
    await ahead.ends()
    whole = await asyncio.to_thread(events, gateway, job_id)
    for index, (event_id, *_) in enumerate(whole):
        assert await asyncio.to_thread(events, gateway, job_id, f"?after={event_id}") == whole[index + 1 :]
        resumed = await asyncio.to_thread(events, gateway, job_id, "?after=0", **{"last-event-id": event_id})
        assert resumed == whole[index + 1 :]


async def test_a_silent_stream_says_that_it_lives_and_ends_with_the_gateway(start_gateway: Any) -> None:
    with start_gateway({"interlace_server.sse._KEEP_ALIVE": 0.2}, gateway={"drain_seconds": 0}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
        follower = Follower(gateway, await asyncio.to_thread(post, gateway))
        await asyncio.to_thread(until, lambda: follower.comments, "a comment")
        gateway.process.terminate()
        await follower.ends()
        assert [name for _, name, _ in follower.seen] == ["state"]


async def test_the_same_request_is_the_same_job(gateway: Gateway, worker: Worker) -> None:
    def again(key: str, payload: bytes = PICKLE, header: str = "", **changes: Any) -> httpx.Response:
        headers = {**HEADERS, "Idempotency-Key": key} | dict([header.split(": ")] if header else ())
        return gateway.post(payload, headers=headers, compress=False, **changes)

    first = await asyncio.to_thread(again, "key-1")
    assert "idempotent-replayed" not in first.headers
    job_id = first.json()["id"]
    socket = await asyncio.to_thread(gateway.connect)
    session = json.loads(socket.recv())["session_id"]
    for changes in ({}, {"session_id": session}):
        replayed = await asyncio.to_thread(again, "key-1", **changes)
        assert (replayed.json()["id"], replayed.headers["idempotent-replayed"]) == (job_id, "true")
    assert await worker.state.queue.length(KEY) == 1
    for payload, env in ((b"\x80\x04K\x01.", {}), (PICKLE, {"attn_implementation": "eager"})):
        refused = await asyncio.to_thread(again, "key-1", payload, env=env)
        assert refused.status_code == 409
        assert "Idempotency-Key" in refused.json()["detail"]
    for header, status in (
        ("interlace-stream: saves", 409),
        ("interlace-batching: off", 409),
        ("interlace-batching: on", 200),
    ):
        assert (await asyncio.to_thread(again, "key-1", header=header)).status_code == status
    other = await asyncio.to_thread(again, "key-2")
    assert other.json()["id"] != job_id
    for _ in range(2):
        await worker.complete(await worker.start(), saved(x=1))
    assert (await asyncio.to_thread(again, "key-1")).json()["id"] == job_id
    frames = [await asyncio.to_thread(socket.recv) for _ in range(4)]
    assert job_id in str(frames[-1])
    socket.close()
    await asyncio.to_thread(call, gateway, "DELETE", f"/v1/jobs/{job_id}")
    fresh = await asyncio.to_thread(again, "key-1")
    assert fresh.json()["id"] != job_id
    payloads = [path.name for path in (gateway.config.state_dir / "store" / "payloads").iterdir()]
    assert fresh.json()["id"] in payloads
    await asyncio.to_thread(call, gateway, "DELETE", f"/v1/jobs/{fresh.json()['id']}")


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "t\tab", b"\xc3\xa9"])
async def test_a_key_that_is_none(gateway: Gateway, state: State, key: str) -> None:
    answer = await asyncio.to_thread(gateway.post, headers={**HEADERS, "Idempotency-Key": key})
    assert answer.status_code == 422
    assert "idempotency-key" in answer.json()["detail"].lower()
    longest = await asyncio.to_thread(gateway.post, headers={**HEADERS, "Idempotency-Key": "~" * 255})
    assert longest.status_code == 200
    await asyncio.to_thread(call, gateway, "DELETE", f"/v1/jobs/{longest.json()['id']}")
