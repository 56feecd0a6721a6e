"""`/v1/models`: who may see what, what an admin asks for becomes a record, and on demand what a policy allows."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from gateway_process import COMMIT, DEADLINE, HEADERS, KEY, Gateway, mint, publish

from interlace.protocol.hosting import Moment, Origin, Phase
from interlace.protocol.model import ModelKey
from interlace_state.desired import Desired
from interlace_state.models import ModelCard, ModelState, Replica
from interlace_state.settings.models import ModelConfig
from interlace_state.store import State, open_state

NEW = ModelKey(repo_id="lab/new")


async def call(gateway: Gateway, method: str, path: str, key: str = "", **options: Any) -> httpx.Response:
    headers = {"ndif-api-key": key} if key else {}
    return await asyncio.to_thread(
        httpx.request, method, f"{gateway.url}{path}", headers=headers, timeout=DEADLINE, **options
    )


async def found(state: State, key: ModelKey) -> Desired:
    record = await state.desired.find(key)
    assert record is not None
    return record


async def test_an_admin_deploys_scales_evicts_and_forgets(gateway: Gateway, state: State) -> None:
    body = {"source": NEW.repo_id, "dtype": "bfloat16", "autoscale": {"least": 0, "most": 3}, "idle_seconds": 60}
    deployed = await call(gateway, "POST", "/v1/models", json=body)
    assert deployed.status_code == 202
    shown = deployed.json()
    assert (shown["model"], shown["phase"], shown["origin"]) == (NEW.repo_id, "queued", "deployed")
    assert (shown["least"], shown["most"], shown["idle_seconds"]) == (0, 3, 60)
    assert await state.desired.find(NEW) is not None

    scaled = await call(gateway, "PATCH", f"/v1/models/{NEW.repo_id}", json={"replicas": 2, "pin": True})
    assert (scaled.json()["least"], scaled.json()["most"], scaled.json()["pin"]) == (2, 2, True)
    record = await state.desired.find(NEW)
    assert record is not None
    first = record.generation
    assert (record.model.autoscale, record.model.idle_seconds) == (None, 60)
    never = await call(gateway, "PATCH", f"/v1/models/{NEW.slug}", json={"idle_seconds": None})
    assert never.json()["idle_seconds"] is None

    evicted = await call(gateway, "DELETE", f"/v1/models/{NEW.repo_id}")
    assert evicted.status_code == 202
    assert (await state.desired.find(NEW) or record).resting
    await call(gateway, "POST", "/v1/models", json={"source": NEW.repo_id, "dtype": "float16"})
    record = await state.desired.find(NEW)
    assert record is not None
    assert (record.resting, record.generation) == (False, first + 1)  # another dtype: its replicas start anew

    assert (await call(gateway, "DELETE", f"/v1/models/{NEW.repo_id}?forget=true")).status_code == 202
    assert await state.desired.find(NEW) is None


async def test_one_that_is_forgotten_and_deployed_before_anybody_looks_starts_anew(
    gateway: Gateway, state: State
) -> None:
    body = {"source": NEW.repo_id}
    await call(gateway, "POST", "/v1/models", json=body)
    former = await found(state, NEW)  # as the placement loop knows it
    await state.desired.say(NEW, Moment(phase=Phase.FAILED, text="no room", at=1.0))
    await call(gateway, "DELETE", f"/v1/models/{NEW.repo_id}?forget=true")
    anew = (await call(gateway, "POST", "/v1/models", json=body | {"dtype": "float16"})).json()
    assert (anew["phase"], anew["text"]) == ("queued", "It starts anew, as it was asked for now.")
    assert (await found(state, NEW)).generation != former.generation


async def test_one_that_failed_is_queued_once_it_is_asked_for_anew(gateway: Gateway, state: State) -> None:
    """And not failed for as long as its card has the former reason: `interlace deploy` would end with that."""
    body = {"source": NEW.repo_id}
    await call(gateway, "POST", "/v1/models", json=body)
    card = (await state.models.find(NEW)).card.model_copy(update={"failure": "no room"})
    await state.models.publish(card)
    await state.desired.say(NEW, Moment(phase=Phase.FAILED, text="no room", at=1.0))
    shown = (await call(gateway, "GET", f"/v1/models/{NEW.repo_id}")).json()
    assert (shown["phase"], shown["text"]) == ("failed", "no room")
    anew = (await call(gateway, "POST", "/v1/models", json=body)).json()
    assert (anew["phase"], anew["text"]) == ("queued", "It starts anew, as it was asked for now.")
    deployments = (await call(gateway, "GET", "/status")).json()["deployments"].values()
    [one] = [one for one in deployments if one["repo_id"] == NEW.repo_id]
    assert (one["application_state"], one["phase"]) == ("DEPLOYING", "queued")


async def test_what_the_file_names_is_not_forgotten(gateway: Gateway, state: State) -> None:
    model = ModelConfig(source=KEY.repo_id)
    await state.desired.put(Desired(key=KEY, model=model, origin=Origin.CONFIGURED, configured=model))
    refused = await call(gateway, "DELETE", f"/v1/models/{KEY.repo_id}?forget=true")
    assert (refused.status_code, "is in the configuration file" in refused.json()["detail"]) == (422, True)
    await state.desired.remove(KEY)
    refused = await call(gateway, "DELETE", f"/v1/models/{KEY.repo_id}")
    assert (refused.status_code, "No placement loop" in refused.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("method", "path", "body", "said"),
    [
        ("POST", "", b"{", "json"),
        ("POST", "", b'{"source": "./here"}', "give the `repo_id`"),
        ("POST", "", b'{"source": "a/b", "dtype": "int3"}', "dtype"),
        ("POST", "", b'{"source": "a/b", "quantization": "magic"}', "quantization"),
        ("POST", "", b'{"source": "a/b", "quantization": "fp8"}', "needs a gpu of compute capability 8.9"),
        ("POST", "", b'{"source": "a/b", "gpus": 2}', "a model with `gpus` is resident"),
        ("POST", "", b'{"source": "a/b", "gpus": 65}', "expected at most 64"),
        ("POST", "", b'{"source": "a/b", "replicas": 257}', "expected at most 256"),
        ("POST", "", b'{"source": "a/b", "autoscale": {"most": 257}}', "expected at most 256"),
        ("PATCH", f"/{KEY.repo_id}", b'{"replicas": 257}', "expected at most 256"),
        ("POST", "", b'{"sauce": "a/b"}', "sauce"),
        ("PATCH", f"/{KEY.repo_id}", b'{"replicas": 0}', "replicas"),
        ("PATCH", f"/{KEY.repo_id}", b'{"replicas": 1, "autoscale": {"most": 2}}', "both"),
        ("PATCH", f"/{KEY.repo_id}", b" " * 70_000, "65,536 bytes"),
    ],
)
async def test_wishes_that_are_none(
    gateway: Gateway, state: State, method: str, path: str, body: bytes, said: str
) -> None:
    answer = await call(gateway, method, f"/v1/models{path}", content=body)
    assert answer.status_code == 422
    assert said in answer.json()["detail"].lower()


async def test_only_an_admin_may_and_a_key_shows_its_models(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            await state.models.publish(ModelCard(key=NEW, commit=COMMIT, dtype="float32", config={}))
            user = mint(redis_url, gateway.config.redis.prefix, "lab", models=[KEY.repo_id])
            for method, path in (("POST", ""), ("PATCH", f"/{KEY.repo_id}"), ("DELETE", f"/{KEY.repo_id}")):
                assert (await call(gateway, method, f"/v1/models{path}", user, content=b"{}")).status_code == 403
                assert (await call(gateway, method, f"/v1/models{path}", content=b"{}")).status_code == 401
            listed = (await call(gateway, "GET", "/v1/models", user)).json()["models"]
            assert [one["model"] for one in listed] == [KEY.repo_id]
            assert (await call(gateway, "GET", f"/v1/models/{NEW.repo_id}", user)).status_code == 404
            assert (await call(gateway, "GET", f"/v1/models/{KEY.slug}/pause", user)).status_code == 405


@pytest.mark.parametrize(
    ("phase", "application", "level"),
    [
        (Phase.QUEUED, "DEPLOYING", "HOT"),
        (Phase.DOWNLOADING, "DEPLOYING", "HOT"),
        (Phase.LOADING, "DEPLOYING", "HOT"),
        (Phase.EVICTED, "NOT_STARTED", "COLD"),
        (Phase.READY, "RUNNING", "HOT"),
        (Phase.IDLE, "RUNNING", "HOT"),
        (Phase.FAILED, "UNHEALTHY", "HOT"),
    ],
)
async def test_each_phase_in_the_words_of_stock_clients(
    gateway: Gateway, state: State, phase: Phase, application: str, level: str
) -> None:
    await state.models.withdraw(NEW)
    failure = "no memory" if phase is Phase.FAILED else None
    await state.models.publish(ModelCard(key=NEW, commit=COMMIT, dtype="float32", config={}, failure=failure))
    if phase in (Phase.READY, Phase.IDLE):
        await state.models.beat(NEW, Replica(id="n1", state=ModelState.READY, pid=1, node="n1"))
    else:
        await state.models.want(NEW, 0)
    moment = Moment(phase=phase, text="why", at=1.0, bytes_done=3, bytes_total=7)
    await state.desired.say(NEW, moment)
    try:
        entries = (await asyncio.to_thread(gateway.get, "/status")).json()["deployments"].values()
        (entry,) = [one for one in entries if one["repo_id"] == NEW.repo_id]
        assert (entry["application_state"], entry["deployment_level"], entry["phase"]) == (application, level, phase)
        shown = (await asyncio.to_thread(gateway.get, f"/v1/models/{NEW.repo_id}")).json()
        assert (shown["phase"], shown["bytes_done"], shown["bytes_total"]) == (phase, 3, 7)
        assert [one["phase"] for one in shown["history"]] == [phase]
    finally:
        await state.models.withdraw(NEW)


async def test_a_model_comes_on_demand_where_the_policy_says_so(start_gateway: Any) -> None:
    with start_gateway(on_demand={"allow": ["lab/*", "one/exactly"], "most": 2, "idle_seconds": 5}) as gateway:
        async with open_state(gateway.config) as state:

            def ask(repo_id: str, **more: Any) -> httpx.Response:
                key = ModelKey(repo_id=repo_id, **more)
                return gateway.post(headers=HEADERS, model_key=key.canonical)

            refused = await asyncio.to_thread(ask, "other/one")
            assert refused.status_code == 422
            assert "lab/*, one/exactly" in refused.json()["detail"]
            assert "trust_remote_code" in (await asyncio.to_thread(ask, "lab/a", trust_remote_code=True)).text
            assert await state.desired.all() == []

            taken = await asyncio.to_thread(ask, "lab/a")
            assert taken.status_code == 200
            record = await state.desired.find(ModelKey(repo_id="lab/a"))
            assert record is not None
            assert (record.origin, record.resting, record.model.idle_seconds) == (Origin.ON_DEMAND, True, 5)
            polled = await asyncio.to_thread(gateway.get, f"/response/{taken.json()['id']}")
            assert polled.json()["status"] == "DEPLOYING"
            moment = Moment(phase=Phase.DOWNLOADING, at=1.0, bytes_done=3_000_000, bytes_total=9_000_000)
            await state.desired.say(record.key, moment)
            polled = await asyncio.to_thread(gateway.get, f"/response/{taken.json()['id']}")
            assert "3 of 9 MB" in polled.json()["description"]

            # Who has no job goes for another, and nobody else does.
            await state.desired.put(record.model_copy(update={"key": ModelKey(repo_id="lab/b"), "asked_at": 1.0}))
            assert (await asyncio.to_thread(ask, "one/exactly")).status_code == 200
            known = {one.key.repo_id for one in await state.desired.all()}
            assert known == {"lab/a", "one/exactly"}
            assert (await asyncio.to_thread(ask, "lab/c")).status_code == 429


async def test_the_hub_waits_for_the_small_files_and_says_what_is_wrong(start_gateway: Any) -> None:
    with start_gateway(on_demand={"allow": ["lab/*"]}) as gateway:
        async with open_state(gateway.config) as state:
            path = "/hf/lab/a/resolve/main/config.json"
            asking = asyncio.create_task(asyncio.to_thread(gateway.get, path))
            async with asyncio.timeout(DEADLINE):
                while (record := await state.desired.find(ModelKey(repo_id="lab/a"))) is None:
                    await asyncio.sleep(0.05)
            assert record.resting
            await state.models.put_file(record.key, "config.json", b'{"x": 1}')
            await state.models.publish(ModelCard(key=record.key, commit=COMMIT, dtype="float32", config={}))
            assert json.loads((await asking).content) == {"x": 1}

            failed = ModelCard(
                key=ModelKey(repo_id="lab/b"), commit="0" * 40, dtype="f", config={}, failure="too large"
            )
            await state.models.publish(failed)
            answer = await asyncio.to_thread(gateway.get, "/hf/lab/b/resolve/main/config.json")
            assert (answer.status_code, answer.json()["detail"]) == (404, "too large")
            refused = await asyncio.to_thread(gateway.get, "/hf/else/c/resolve/main/config.json")
            assert (refused.status_code, "lab/*" in refused.json()["detail"]) == (404, True)


def told(answer: httpx.Response) -> list[tuple[str, str | None]]:
    """(model, phase) of server-sent events."""
    assert answer.status_code == 200, answer.text
    events = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: ")]
    return [(event["model"], event["moment"] and event["moment"]["phase"]) for event in events]


async def test_what_happens_to_models_is_told_to_those_whom_they_are_for(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            await state.models.publish(ModelCard(key=NEW, commit=COMMIT, dtype="float32", config={}))
            for key, phase in ((NEW, Phase.LOADING), (KEY, Phase.LOADING), (KEY, Phase.READY)):
                await state.desired.say(key, Moment(phase=phase, at=1.0))
            user = mint(redis_url, gateway.config.redis.prefix, "lab", models=[KEY.repo_id])
            admin = mint(redis_url, gateway.config.redis.prefix, "ops", role="admin")
            path = "/v1/models/events?follow=false"
            ours, all_of_it = [(KEY.repo_id, "loading"), (KEY.repo_id, "ready")], (NEW.repo_id, "loading")
            assert told(await call(gateway, "GET", path, user)) == ours
            assert told(await call(gateway, "GET", path, admin)) == [all_of_it, *ours]
            assert told(await call(gateway, "GET", f"{path}&model={NEW.slug}", admin)) == [all_of_it]
            assert (await call(gateway, "GET", f"{path}&model={NEW.repo_id}", user)).status_code == 404
            assert (await call(gateway, "GET", path)).status_code == 401
            assert (await call(gateway, "GET", f"{path}&after=x", user)).status_code == 422
