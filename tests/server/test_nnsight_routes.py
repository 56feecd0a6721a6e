"""The routes beside POST and WebSocket: polling, result links, what is hosted, who asks."""

import asyncio
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_process import DEADLINE, HEADERS, KEY, MODEL_KEY, Gateway, Worker, publish, saved, until

from interlace.protocol.job import Job, JobState
from interlace.protocol.model import ModelKey
from interlace_state.keys import Keys
from interlace_state.models import ModelState, Replica
from interlace_state.store import State, open_state


async def get(gateway: Gateway, path: str) -> httpx.Response:
    return await asyncio.to_thread(gateway.get, path)


async def submit(gateway: Gateway, **changes: Any) -> str:
    """Post a job without a socket; returns its id."""
    answer = await asyncio.to_thread(gateway.post, **changes)
    assert answer.status_code == 200, answer.text
    job_id: str = answer.json()["id"]
    return job_id


async def test_the_answer_to_a_post(gateway: Gateway, worker: Worker) -> None:
    answer = await asyncio.to_thread(gateway.post)
    job_id = answer.json()["id"]
    assert re.fullmatch("[0-9a-f]{32}", job_id)
    assert answer.json() == {
        "id": job_id,
        "status": "RECEIVED",
        "description": "Your job has been received and is waiting to be queued.",
        "data": None,
        "meta": None,
    }


async def test_what_a_worker_leases_is_what_was_posted(gateway: Gateway, worker: Worker) -> None:
    before = time.time()
    job_id = await submit(gateway, compress=False, env={"attn_implementation": "eager"})
    job = (await worker.lease()).job
    assert isinstance(job, Job)
    assert (job.id, job.tenant, job.model, job.kind, job.compress) == (job_id, "local", KEY, "trace", False)
    assert job.env == {"attn_implementation": "eager"}
    assert before <= job.submitted_at <= time.time()
    assert job.limits.unpacked_bytes == gateway.config.limits.unpacked_bytes
    assert await worker.state.results.payload(job) == b"\x80\x04N."


@pytest.mark.parametrize(("said", "shares"), [({}, True), ({"interlace-batching": "off"}, False)])
async def test_a_request_may_say_that_it_shares_with_none(
    gateway: Gateway, worker: Worker, said: dict[str, str], shares: bool
) -> None:
    for _ in range(2):
        answer = await asyncio.to_thread(gateway.post, headers=HEADERS | said)
        assert answer.status_code == 200
    held = await worker.lease()
    assert held.has_company is shares
    assert len(await worker.state.queue.company(held, "one", 9)) == int(shares)


async def test_another_word_on_sharing_is_refused(gateway: Gateway) -> None:
    answer = await asyncio.to_thread(gateway.post, headers=HEADERS | {"interlace-batching": "maybe"})
    assert answer.status_code == 422
    assert "interlace-batching" in answer.text


async def test_polling_a_job_to_its_end(gateway: Gateway, worker: Worker) -> None:
    job_id = await submit(gateway)
    seen = [(await get(gateway, f"/response/{job_id}")).json()]
    lease = await worker.start()
    await worker.log(lease, "a log is not a status")
    seen.append((await get(gateway, f"/response/{job_id}")).json())
    body = saved(x=1)
    await worker.complete(lease, body)
    seen.append((await get(gateway, f"/response/{job_id}")).json())
    assert [(update["status"], update["data"] is None) for update in seen] == [
        ("QUEUED", True),
        ("RUNNING", True),
        ("COMPLETED", False),
    ]
    assert seen[2]["meta"]["runtime"] == 1.2346
    answer = await get(gateway, seen[2]["data"].removeprefix(gateway.url))
    assert (answer.status_code, answer.content) == (200, body)
    assert answer.headers["content-length"] == str(len(body))
    assert "no-store" in answer.headers["cache-control"]


@pytest.mark.parametrize("state_", [JobState.ERROR, JobState.CANCELLED])
async def test_polling_a_job_that_failed(gateway: Gateway, worker: Worker, state_: JobState) -> None:
    job_id = await submit(gateway)
    await worker.end(await worker.start(), "ValueError: no", state_)
    update = (await get(gateway, f"/response/{job_id}")).json()
    assert (update["status"], update["description"], update["data"]) == ("ERROR", "ValueError: no", None)
    assert update["meta"]["runtime"] == 0.5


@pytest.mark.parametrize("job_id", ["0" * 32, "x", "%00", "%F0%9F%9F%A2", "a" * 5000])
def test_polling_what_never_was(gateway: Gateway, job_id: str) -> None:
    answer = gateway.get(f"/response/{job_id}")
    assert answer.status_code == 404
    assert "its lifetime is over" in answer.json()["detail"]


@pytest.mark.parametrize("change", ["fails", "is withdrawn"])
async def test_a_job_that_comes_in_while_its_model_is_given_up(gateway: Gateway, state: State, change: str) -> None:
    """The gateway saw it loading; by the time the job is in, the jobs that waited have been ended already."""
    key = ModelKey(repo_id=f"lab/slow-{change[0]}")
    await publish(state, gateway.config, key, ready=False)
    payloads = Path(gateway.config.store_url) / "payloads"
    before = len(list(payloads.iterdir())) if payloads.exists() else 0
    await state.redis.client_pause(100_000, all=False)  # writes wait, in their order, and reads do not
    try:
        if change == "fails":
            given_up = asyncio.create_task(publish(state, gateway.config, key, ready=False, failure="out of disk"))
        else:
            name = Keys(gateway.config.redis.prefix).models
            given_up = asyncio.create_task(state.redis.hdel(name, key.slug))
        await blocked(state, 1)
        posting = asyncio.create_task(asyncio.to_thread(gateway.post, model_key=key.canonical))
        # Its payload is stored, so that the model was looked at, and the job is on its way.
        await asyncio.to_thread(until, lambda: payloads.exists() and len([*payloads.iterdir()]) == before + 1, "a job")
        await blocked(state, 2)
    finally:
        await state.redis.client_unpause()
    await given_up
    job_id = (await posting).json()["id"]
    update = (await get(gateway, f"/response/{job_id}")).json()
    said = "could not be loaded on this server: out of disk" if change == "fails" else "does not host lab/slow-i"
    assert (update["status"], said in update["description"]) == ("ERROR", True)


async def blocked(state: State, count: int) -> None:
    """Wait until so many writes wait in Redis."""
    end = time.monotonic() + DEADLINE
    while (await state.redis.info("clients"))["blocked_clients"] < count:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_each_poll_signs_anew_and_a_link_expires(start_gateway: Any) -> None:
    with start_gateway(lifetimes={"result_url": 10}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            worker = Worker(state)
            job_id = await submit(gateway)
            await worker.complete(await worker.start(), saved())
            asked = time.time()
            first = (await get(gateway, f"/response/{job_id}")).json()["data"]
            token = first.rpartition("/")[2]
            expires = int(token.split(".")[1])
            assert asked + 8 < expires < time.time() + 11
            # A second later the next poll's link lasts a second longer.
            while (second := (await get(gateway, f"/response/{job_id}")).json()["data"]) == first:
                await asyncio.sleep(0.1)
            assert int(second.split(".")[-2]) > expires


@pytest.fixture
async def token(gateway: Gateway, worker: Worker) -> str:
    """A good result token."""
    job_id = await submit(gateway)
    await worker.complete(await worker.start(), saved())
    url: str = (await get(gateway, f"/response/{job_id}")).json()["data"]
    return url.rpartition("/")[2]


def test_a_result_link_needs_no_key(gateway: Gateway, token: str) -> None:
    assert httpx.get(f"{gateway.url}/results/{token}").status_code == 200


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda job, expires, sign: f"{'0' * 32}.{expires}.{sign}", "no result link of this server"),
        (lambda job, expires, sign: f"{job}.{int(expires) + 1}.{sign}", "no result link of this server"),
        (lambda job, expires, sign: f"{job}.{expires}.{'A' * 43}", "no result link of this server"),
        (lambda job, expires, sign: f"{job}.{expires}", "no result link of this server"),
        (lambda job, expires, sign: "..%00", "no result link of this server"),
    ],
)
def test_forged_links(gateway: Gateway, token: str, change: Any, sentence: str) -> None:
    answer = gateway.get(f"/results/{change(*token.split('.'))}")
    assert (answer.status_code, sentence in answer.json()["detail"]) == (404, True)


async def test_a_link_whose_result_was_collected(gateway: Gateway, token: str) -> None:
    (Path(gateway.config.store_url) / "results" / token.split(".")[0]).unlink()
    answer = await get(gateway, f"/results/{token}")
    assert (answer.status_code, "lifetime is over" in answer.json()["detail"]) == (404, True)


async def test_results_whose_lifetime_is_over_are_collected(start_gateway: Any, tmp_path: Path) -> None:
    """The collector's first round is at the start of the process."""
    import os

    old = tmp_path / "store" / "results" / ("a" * 32)
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    os.utime(old, (0, 0))
    young = old.with_name("b" * 32)
    young.write_bytes(b"young")
    with start_gateway() as gateway:
        await asyncio.to_thread(until, lambda: gateway.actions("collected"), "the collection")
    assert (old.exists(), young.exists()) == (False, True)


async def test_what_is_left_in_a_queue_of_a_job_whose_lifetime_is_over_is_collected(start_gateway: Any) -> None:
    with start_gateway(hurried={"interlace_server.collector._LONGEST_PERIOD": 0.1}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            keys = Keys(gateway.config.redis.prefix)
            queue = keys.queue(KEY.slug, "local")
            await state.redis.xgroup_create(queue, "workers", id="0", mkstream=True)
            await state.redis.xadd(queue, {"job": "f" * 32}, id="1-1")  # of 1970
            await state.redis.sadd(keys.tenants(KEY.slug), "local")
            await asyncio.to_thread(
                until, lambda: any(one["queued"] for one in gateway.actions("collected")), "the job"
            )
            assert await state.queue.length(KEY) == 0


@pytest.mark.parametrize("public_url", ["https://lab.example/interlace", "https://lab.example/interlace/"])
async def test_links_of_a_gateway_behind_a_proxy(start_gateway: Any, public_url: str) -> None:
    with start_gateway(gateway={"public_url": public_url}, store={"inline_bytes": 0}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            socket = gateway.connect()
            job_id = await submit(gateway, session_id=json.loads(socket.recv())["session_id"])
            await Worker(state).complete(await Worker(state).start(), saved())
            frames = [json.loads(socket.recv()) for _ in range(4)]
            socket.close()
            polled = (await get(gateway, f"/response/{job_id}")).json()
            for update in (frames[-1], polled):
                assert update["data"].startswith(f"https://lab.example/interlace/results/{job_id}.")


async def test_links_follow_the_address_that_the_client_used(gateway: Gateway, token: str) -> None:
    job_id = token.split(".")[0]
    answer = httpx.get(f"{gateway.url}/response/{job_id}", headers={"host": "localhost:9000"})
    assert answer.json()["data"].startswith("http://localhost:9000/results/")


async def test_status_of_models_in_every_state(gateway: Gateway, state: State) -> None:
    loading, broken = ModelKey(repo_id="lab/slow"), ModelKey(repo_id="lab/broken", trust_remote_code=True)
    resting = ModelKey(repo_id="lab/resting")
    await publish(state, gateway.config, resting, ready=False)
    await state.models.want(resting, 0)
    await publish(state, gateway.config, loading, ready=False)
    await publish(state, gateway.config, broken, ready=False, failure="no weights")
    second = Replica(id="r2", state=ModelState.DEPLOYING, pid=1, node="n2", resident_bytes=7, holder=5)
    await state.models.beat(KEY, second)
    await state.control.drain("r2")
    found = (await get(gateway, "/status")).json()
    await state.control.undrain("r2")
    await state.models.leave(KEY, "r2")
    deployments = found["deployments"]
    canonical = KEY.canonical
    assert ModelKey.parse(canonical) == ModelKey.parse(MODEL_KEY)
    assert {name: entry["application_state"] for name, entry in deployments.items()} == {
        f"r1:ModelActor:{canonical}": "RUNNING",
        f"r2:ModelActor:{canonical}": "DEPLOYING",
        f"{loading.slug}:ModelActor:{loading.canonical}": "DEPLOYING",
        f"{resting.slug}:ModelActor:{resting.canonical}": "NOT_STARTED",
        f"{broken.slug}:ModelActor:{broken.canonical}": "UNHEALTHY",
    }
    assert deployments[f"r2:ModelActor:{canonical}"]["drained"]
    levels = {one["repo_id"]: one["deployment_level"] for one in deployments.values()}
    assert levels == {"lab/tiny": "HOT", "lab/slow": "HOT", "lab/broken": "HOT", "lab/resting": "COLD"}
    entry = deployments[f"r1:ModelActor:{canonical}"]
    assert entry | {"config": json.loads(entry["config"])} == {
        "application_state": "RUNNING",
        "deployment_level": "HOT",
        "drained": False,
        "paused": False,
        "pinned": True,
        "trusted": False,
        "trust_remote_code": False,
        "dtype": "float32",
        "execution_timeout_seconds": 600.0,
        "model_key": canonical,
        "replica_id": "r1",
        "repo_id": "lab/tiny",
        "task": "text-generation",
        "revision": "main",
        "config": {"model_type": "gpt2"},
        "n_params": None,
        "size_bytes": None,
        "gpus": 0,
        "failure": None,
        "phase": "ready",
        "phase_text": "",
    }
    assert deployments[f"{broken.slug}:ModelActor:{broken.canonical}"]["failure"] == "no weights"
    held = {"gpus": {}, "resident_bytes": 7, "holder": 5}
    assert found["cluster"]["nodes"]["n2"]["deployments"] == {canonical: {"r2": held}}


async def test_env_is_the_workers(gateway: Gateway, state: State) -> None:
    empty = (await get(gateway, "/env")).json()
    assert empty["packages"] == {}
    environment = {"python_version": sys.version, "packages": {"torch": "2.13.0", "nnsight": "0.8.1"}}
    await state.models.publish_environment(environment)
    assert (await get(gateway, "/env")).json() == environment


def test_a_server_that_is_written_with_a_slash_at_its_end(gateway: Gateway) -> None:
    assert gateway.get("//ping").json() == gateway.get("/ping").json()
    assert gateway.get("//v1/jobs/" + "0" * 32).status_code == gateway.get("/v1/jobs/" + "0" * 32).status_code == 404


def test_small_routes(gateway: Gateway) -> None:
    assert gateway.get("/ping").json() == "pong"
    assert gateway.get("/whoami").json() == {"email": None, "tags": []}
    assert httpx.get(f"{gateway.url}/whoami", headers={"ndif-api-key": "no-uuid"}).json() == {"email": None, "tags": []}
    assert gateway.get("/connected").json() == {"status": "connected"}
    head = httpx.head(f"{gateway.url}/connected")
    assert (head.status_code, head.content) == (200, b"")
    assert gateway.get("/healthz").json() == {"status": "ok"}


async def test_readiness_says_why_not(gateway: Gateway, state: State) -> None:
    ready = await get(gateway, "/readyz")
    assert (ready.status_code, ready.json()["detail"]) == (200, "Ready: lab/tiny (text-generation).")
    await state.models.withdraw(KEY)
    empty = await get(gateway, "/readyz")
    assert (empty.status_code, empty.json()) == (503, {"ready": False, "detail": "No model is hosted yet."})
    await publish(state, gateway.config, ModelKey(repo_id="lab/a"), ready=False)
    await publish(state, gateway.config, ModelKey(repo_id="lab/b"), ready=False, failure="no weights")
    waiting = await get(gateway, "/readyz")
    assert waiting.json()["detail"] == (
        "No model is ready: lab/a (text-generation): is being loaded; lab/b (text-generation): no weights."
    )
    await state.models.want(ModelKey(repo_id="lab/a"), 0)  # the next job starts it
    resting = await get(gateway, "/readyz")
    assert (resting.status_code, resting.json()["detail"]) == (200, "Scaled to zero: lab/a (text-generation).")
