"""Operators change a running server: models pause, replicas drain, tenants get weights and limits. Others may not."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from gateway_process import COMMIT, DEADLINE, HEADERS, KEY, Gateway, Worker, mint, publish, saved

from interlace.protocol.model import ModelKey
from interlace_state.models import ModelCard
from interlace_state.settings.limits import LimitChanges
from interlace_state.store import State, open_state

CALLS = [
    ("POST", f"/v1/models/{KEY.slug}/pause"),
    ("POST", f"/v1/models/{KEY.repo_id}/resume"),
    ("POST", "/v1/replicas/r1/drain"),
    ("DELETE", "/v1/replicas/r1/drain"),
    ("GET", "/v1/tenants/lab-a"),
    ("PUT", "/v1/tenants/lab-a"),
]


async def call(gateway: Gateway, method: str, path: str, key: str = "", **options: Any) -> httpx.Response:
    headers = {"ndif-api-key": key} if key else {}
    return await asyncio.to_thread(
        httpx.request, method, f"{gateway.url}{path}", headers=headers, timeout=DEADLINE, **options
    )


async def test_only_an_admin_may(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            user, admin = (mint(redis_url, gateway.config.redis.prefix, "lab", role=role) for role in ("user", "admin"))
            for method, path in CALLS:
                assert (await call(gateway, method, path)).status_code == 401
                refused = await call(gateway, method, path, user, content=b"{")
                assert refused.status_code == 403
                assert "--role admin" in refused.json()["detail"]
                options = {"json": {"weight": 2}} if method == "PUT" else {}
                assert (await call(gateway, method, path, admin, **options)).status_code == 200, path
            lines = (gateway.config.state_dir / "audit.jsonl").read_text().splitlines()
            done = [line["action"] for line in map(json.loads, lines) if line["action"] != "refused"]
            assert done == ["model paused", "model resumed", "replica drained", "replica undrained", "tenant changed"]
            assert (await state.control.terms("lab-a")).weight == 2


@pytest.mark.parametrize("name", [KEY.slug, KEY.repo_id])
async def test_a_paused_model_starts_no_jobs(gateway: Gateway, worker: Worker, name: str) -> None:
    paused = await call(gateway, "POST", f"/v1/models/{name}/pause")
    assert paused.json() == {"model": KEY.repo_id, "slug": KEY.slug, "paused": True}
    assert (await asyncio.to_thread(gateway.post, headers=HEADERS)).status_code == 200
    assert await worker.state.queue.lease(KEY, "worker") is None
    resumed = await call(gateway, "POST", f"/v1/models/{name}/resume")
    assert resumed.json()["paused"] is False
    await worker.complete(await worker.start(), saved(x=1))


async def test_a_model_that_is_not_one(gateway: Gateway, state: State) -> None:
    unknown = await call(gateway, "POST", "/v1/models/lab/nothing/pause")
    assert unknown.status_code == 404
    assert KEY.repo_id in unknown.json()["detail"]
    other = ModelKey(repo_id=KEY.repo_id, revision="v2")
    await state.models.publish(ModelCard(key=other, commit=COMMIT, dtype="float32", config={}))
    unclear = await call(gateway, "POST", f"/v1/models/{KEY.repo_id}/pause")
    assert unclear.status_code == 422
    assert KEY.slug in unclear.json()["detail"]
    assert other.slug in unclear.json()["detail"]
    assert not (await state.models.look(KEY)).paused


async def test_a_replica_is_drained_and_back(gateway: Gateway, state: State) -> None:
    drained = await call(gateway, "POST", "/v1/replicas/r1/drain")
    assert drained.json() == {"replica": "r1", "drained": True}
    assert await state.control.drained() == {"r1"}
    assert (await call(gateway, "DELETE", "/v1/replicas/r1/drain")).json() == {"replica": "r1", "drained": False}
    assert await state.control.drained() == frozenset()
    unknown = await call(gateway, "POST", "/v1/replicas/r9/drain")
    assert unknown.status_code == 404
    assert "r1" in unknown.json()["detail"]


async def test_a_tenants_weight_and_limits(gateway: Gateway, state: State) -> None:
    def limits(found: httpx.Response) -> dict[str, Any]:
        return {name: value for name, value in found.json()["limits"].items() if value is not None}

    fresh = await call(gateway, "GET", "/v1/tenants/lab-x")
    assert (fresh.json()["weight"], limits(fresh)) == (1, {})
    await call(gateway, "PUT", "/v1/tenants/lab-x", json={"weight": 2.5})
    both = await call(gateway, "PUT", "/v1/tenants/lab-x", json={"limits": {"running_jobs": 3}})
    assert (both.json()["weight"], limits(both)) == (2.5, {"running_jobs": 3})
    assert (await state.control.terms("lab-x")).limits == LimitChanges(running_jobs=3)
    back = await call(gateway, "PUT", "/v1/tenants/lab-x", json={"limits": {}})
    assert (back.json()["weight"], limits(back)) == (2.5, {})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "json"),
        (b'{"weight": 0}', "weight"),
        (b'{"weight": 1e9}', "weight"),
        (b'{"weight": NaN}', "weight"),
        (b'{"wait": 1}', "wait"),
        (b'{"limits": {"wall_second": 1}}', "limits.wall_second"),
        (b'{"limits": {"wall_seconds": -1}}', "limits.wall_seconds"),
        (b" " * 70_000, "65,536 bytes"),
    ],
)
async def test_changes_that_are_none(gateway: Gateway, state: State, body: bytes, said: str) -> None:
    answer = await call(gateway, "PUT", "/v1/tenants/lab-y", content=body)
    assert answer.status_code == 422
    assert said in answer.json()["detail"].lower()
    assert (await state.control.terms("lab-y")).weight == 1
