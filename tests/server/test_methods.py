"""`/v1/methods` and `POST /v1/jobs` on a real gateway: what is told, what is taken in, what is refused and how."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_process import KEY, MODEL_KEY, Gateway, Worker, mint, publish
from lakes import lineage, ran
from uploads import upload

from interlace.protocol.job import JobKind, JobState
from interlace.protocol.method import Payload
from interlace_state.store import State, open_state

PARAMS = {"prompts": ["The Eiffel Tower is in"]}
CONFIG = {"model_type": "gpt2", "n_layer": 4, "n_embd": 64, "vocab_size": 400}


def post(gateway: Gateway, key: str = "", *, again: str = "", **changes: Any) -> httpx.Response:
    body = {"method": "lens.logit", "model": KEY.repo_id, "params": PARAMS} | changes
    headers = {name: value for name, value in (("ndif-api-key", key), ("Idempotency-Key", again)) if value}
    said = {name: value for name, value in body.items() if value is not None}
    return httpx.post(f"{gateway.url}/v1/jobs", json=said, headers=headers, timeout=60)


def texts(gateway: Gateway, key: str = "", data: bytes = b'{"texts": ["one", "two"]}') -> httpx.Response:
    return upload(gateway.url, {"texts.json": data}, key=key, kind="texts")


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["detail"])


def test_the_methods_are_told(gateway: Gateway, state: State) -> None:
    listed = gateway.get("/v1/methods").json()["methods"]
    assert {"ref": "lens.logit@1", "name": "lens.logit", "version": 1}.items() <= next(
        one for one in listed if one["name"] == "lens.logit"
    ).items()
    told = gateway.get("/v1/methods/lens.logit").json()
    assert told == gateway.get("/v1/methods/lens.logit@1").json()
    assert told["params"]["properties"]["top"]["maximum"] == 100
    assert told["params"]["required"] == ["prompts"]
    assert told["takes"] == {"prompts": ["texts"]}
    assert "lens.logit@1" in refused(gateway.get("/v1/methods/lens.magic"), 404)


async def test_it_is_a_job_like_another(gateway: Gateway, state: State, worker: Worker) -> None:
    answer = await asyncio.to_thread(post, gateway, seed=3, again="once")
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert (job["method"], job["state"], job["model"]) == ("lens.logit@1", "queued", KEY.repo_id)
    again = await asyncio.to_thread(post, gateway, seed=3, again="once")
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (job["id"], "true")
    assert "with another request" in refused(await asyncio.to_thread(post, gateway, seed=4, again="once"), 409)
    lease = await worker.lease()
    assert (lease.job.id, lease.job.kind, lease.has_company) == (job["id"], JobKind.METHOD, False)
    call = lease.job.method
    assert call is not None
    assert (call.ref, call.seed, call.opens) == ("lens.logit@1", 3, {})
    said = Payload.model_validate_json(await state.results.payload(lease.job))
    assert said.params == PARAMS | {"layers": None, "positions": [-1], "top": 5, "targets": None}


async def test_methods_share_no_forward(gateway: Gateway, state: State, worker: Worker) -> None:
    for _ in range(3):
        assert (await asyncio.to_thread(post, gateway)).status_code == 200
    lease = await worker.lease()
    assert not lease.has_company
    assert await state.queue.company(lease, "worker", 8) == []


@pytest.mark.parametrize("name", [KEY.repo_id, KEY.slug, MODEL_KEY, KEY.canonical])
def test_what_a_model_is_called(gateway: Gateway, state: State, name: str) -> None:
    assert post(gateway, model=name).json()["slug"] == KEY.slug


@pytest.mark.parametrize(
    ("changes", "status", "sentence"),
    [
        ({"method": "lens.magic"}, 404, "No method lens.magic is installed on this server. There are:"),
        ({"method": None}, 422, "`method` is missing. It takes method (required), model (required), params, inputs"),
        ({"model": "lab/absent"}, 404, "This server does not host lab/absent"),
        ({"model": "x:{}"}, 422, "The model key starts with 'x'"),
        ({"model": "no such thing"}, 404, "does not host no such thing"),
        ({"params": {}}, 422, "The request for lens.logit@1 is not valid: `params.prompts` is missing. `params` takes"),
        ({"params": PARAMS | {"top": 0}}, 422, "`params.top` is 0, expected at least 1."),
        ({"method": "lens.logits"}, 404, "Did you mean lens.logit@1?"),
        ({"params": PARAMS | {"topp": 3}}, 422, "`params.topp` is unknown (did you mean `top`?)"),
        ({"params": PARAMS | {"topp": 3}}, 422, "`params` takes prompts (required), layers, positions, top, targets."),
        ({"params": PARAMS | {"positions": ["x"]}}, 422, "`params.positions.0` is 'x', expected a whole number."),
        ({"inputs": {"top": 200}}, 422, "`inputs.top` is 200, expected at most 100."),
        ({"inputs": {"prompts": ["x"]}}, 422, "`prompts` is in `params` and in `inputs`"),
        ({"params": {"prompts": "/etc/passwd"}}, 422, "`params.prompts` is '/etc/passwd'; expected artifact:ID"),
        ({"params": {"prompts": "artifact:xyz"}}, 422, "expected artifact:ID or artifact:ID@HASH"),
        ({"params": {"prompts": "artifact:0123456789abcdef"}}, 404, "There is no artifact 0123456789abcdef"),
        ({"edits": ["lab/lora"]}, 422, "`edits.0` is 'lab/lora'; expected artifact:ID"),
        ({"seed": -1}, 422, "`seed` is -1, expected at least 0."),
        ({"limits": {"wall_seconds": 1e9}}, 422, "`limits` is unknown. It takes method (required)"),
        ({"resume": "0" * 32}, 404, "There is no job"),
    ],
)
def test_what_is_wrong_is_named(
    gateway: Gateway, state: State, changes: dict[str, Any], status: int, sentence: str
) -> None:
    assert sentence in refused(post(gateway, **changes), status)


def test_what_no_utf_8_can_say(gateway: Gateway, state: State) -> None:
    said = json.dumps({"method": "lens.logit", "model": KEY.repo_id, "params": {"prompts": ["\ud800"]}})
    as_json = {"Content-Type": "application/json"}
    answer = httpx.post(f"{gateway.url}/v1/jobs", content=said, headers=as_json, timeout=60)
    assert "it holds half of a surrogate pair" in refused(answer, 422)
    answer = httpx.post(f"{gateway.url}/v1/jobs", content="{", headers=as_json, timeout=60)
    assert "it is no JSON, at character 1: Expecting property name" in refused(answer, 422)


def test_artifacts_of_a_request(gateway: Gateway, state: State) -> None:
    ref = f"artifact:{texts(gateway).json()['id']}"
    assert post(gateway, params=None, inputs={"prompts": ref}).status_code == 200
    adapter = upload(gateway.url).json()["id"]
    wrong = refused(post(gateway, params={"prompts": f"artifact:{adapter}"}), 422)
    assert f"names artifact:{adapter}, which is of the kind peft; expected texts" in wrong
    assert "is a texts; as an edit, expected one of: edit, peft" in refused(post(gateway, edits=[ref]), 422)
    assert post(gateway, edits=[f"artifact:{adapter}"]).status_code == 200
    for data, sentence in ((b"{", "is no JSON"), (b'{"texts": [1]}', "a list of texts"), (b'{"texts": []}', "0 texts")):
        assert sentence in refused(texts(gateway, data=data), 422)


async def test_an_estimate(gateway: Gateway, state: State) -> None:
    card = (await state.models.find(KEY)).card
    await state.models.publish(card.model_copy(update={"config": CONFIG, "n_params": 250_000}))
    answer = await asyncio.to_thread(post, gateway, dry_run=True)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["forwards"], answer.json()["seconds"]) == (1, None)
    await state.models.measured(KEY, 0.5)
    slow = await asyncio.to_thread(post, gateway, dry_run=True)
    assert slow.json()["seconds"] == pytest.approx(0.5 * slow.json()["tokens"])
    await state.models.measured(KEY, 1e6)
    assert "limits.wall_seconds" in refused(await asyncio.to_thread(post, gateway, dry_run=True), 413)
    assert (await asyncio.to_thread(gateway.get, "/v1/jobs?state=queued")).json()["jobs"] == []
    await state.redis.delete(f"{gateway.config.redis.prefix}speeds")


async def test_a_body_that_is_too_long(start_gateway: Any) -> None:
    with start_gateway(methods={"request_bytes": 1000}) as gateway:
        long = await asyncio.to_thread(post, gateway, params={"prompts": ["x" * 2000]})
        assert "`methods.request_bytes`" in refused(long, 413)


async def test_keys_reach_what_they_may(start_gateway: Any, redis_url: str) -> None:
    """Of one tenant the texts, of another the key; and a key for some models has no others."""
    with start_gateway() as gateway:
        prefix = gateway.config.redis.prefix
        mine, theirs = (mint(redis_url, prefix, one) for one in ("lab-a", "lab-b"))
        narrow = mint(redis_url, prefix, "lab-c", models=("lab/other",))
        ref = f"artifact:{texts(gateway, mine).json()['id']}"
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            assert (await asyncio.to_thread(post, gateway, mine, params={"prompts": ref})).status_code == 200
            hidden = await asyncio.to_thread(post, gateway, theirs, params={"prompts": ref})
            assert "that is yours" in refused(hidden, 404)
            unknown = refused(await asyncio.to_thread(post, gateway, narrow), 404)
            assert "does not host lab/tiny" in unknown
            job = (await asyncio.to_thread(post, gateway, mine)).json()["id"]
            assert "There is no job" in refused(await asyncio.to_thread(post, gateway, theirs, resume=job), 404)
            assert "has not ended" in refused(await asyncio.to_thread(post, gateway, mine, resume=job), 422)
            await state.queue.cancel(job, "enough")
            assert "no checkpoint is kept" in refused(await asyncio.to_thread(post, gateway, mine, resume=job), 422)


async def test_a_job_that_resumes_another_is_another_request(gateway: Gateway, state: State, worker: Worker) -> None:
    former = (await asyncio.to_thread(post, gateway, again="key")).json()["id"]
    lease = await worker.start()
    staged = state.checkpoints.stage()
    staged.write_bytes(b"what it had")
    await state.checkpoints.put(former, staged, await state.results.payload(lease.job))
    await state.queue.cancel(former, "enough")
    assert "with another request" in refused(await asyncio.to_thread(post, gateway, resume=former, again="key"), 409)
    assert (await asyncio.to_thread(post, gateway, again="key")).json()["id"] == former
    assert (await asyncio.to_thread(post, gateway, resume=former, again="another")).json()["id"] != former
    await worker.complete(await worker.start(), b"{}")


async def test_cancelling_asks_first_and_then_insists(gateway: Gateway, state: State, worker: Worker) -> None:
    waits = (await asyncio.to_thread(post, gateway)).json()["id"]
    at = f"{gateway.url}/v1/jobs/{waits}"
    assert (await asyncio.to_thread(httpx.delete, at)).json()["state"] == "cancelled"
    runs = (await asyncio.to_thread(post, gateway)).json()["id"]
    lease = await worker.start()
    assert lease.job.id == runs
    at = f"{gateway.url}/v1/jobs/{runs}"
    assert not await state.queue.is_stopping(runs)
    asked = (await asyncio.to_thread(httpx.delete, at)).json()
    assert (asked["state"], asked["text"]) == ("running", "Cancelled by its owner: it ends with what it has.")
    assert await state.queue.is_stopping(runs)
    await worker.complete(lease, json.dumps({}).encode())
    fetched = await asyncio.to_thread(gateway.get, f"/v1/jobs/{runs}/result")
    assert fetched.content == b"{}"
    other = (await asyncio.to_thread(post, gateway)).json()["id"]
    await worker.start()
    at = f"{gateway.url}/v1/jobs/{other}"
    assert (await asyncio.to_thread(httpx.delete, at)).json()["state"] == "running"
    assert (await asyncio.to_thread(httpx.delete, at)).json()["state"] == "cancelled"
    assert (await state.jobs.show(other, None)).state is JobState.CANCELLED


async def test_what_a_deleted_job_was_asked_and_has_measured_is_gone(
    gateway: Gateway, state: State, worker: Worker
) -> None:
    job = (await asyncio.to_thread(post, gateway)).json()["id"]
    lease = await worker.start()
    asked = lineage(job, "lens.logit@1", params={"prompts": ["a private prompt"]})
    await state.lake.ran(ran(asked))
    await worker.complete(lease, json.dumps({}).encode())
    store = Path(gateway.config.store_url)
    assert holding(store, b"a private prompt")
    answer = await asyncio.to_thread(httpx.delete, f"{gateway.url}/v1/jobs/{job}")
    assert answer.status_code == 204, answer.text
    assert holding(store, b"a private prompt") == []
    assert job not in await state.lake._runs.all()


def holding(folder: Path, data: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and data in path.read_bytes()]
