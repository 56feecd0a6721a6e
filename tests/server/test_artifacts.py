"""`/v1/artifacts` on a real gateway: what is taken in, for whom, and what is refused before a job is made."""

import json
from typing import Any

import httpx
import pytest
from gateway_process import COMMIT, HEADERS, KEY, Gateway, mint, publish
from uploads import ADAPTER, CONFIG, WEIGHTS, upload

from interlace_state.store import State, open_state


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["detail"])


def get(gateway: Gateway, path: str = "", key: str = "", **headers: str) -> httpx.Response:
    return httpx.get(f"{gateway.url}/v1/artifacts{path}", headers=headers | ({"ndif-api-key": key} if key else {}))


def actions(gateway: Gateway) -> list[tuple[str, str]]:
    lines = map(json.loads, (gateway.config.state_dir / "audit.jsonl").read_text().splitlines())
    return [(line["action"], line["artifact"]) for line in lines if "artifact" in line]


@pytest.mark.usefixtures("state")
def test_up_and_down_again(gateway: Gateway) -> None:
    answer = upload(gateway.url, name="mine", model=KEY.repo_id)
    assert answer.status_code == 201, answer.text
    artifact = answer.json()
    assert (artifact["name"], artifact["kind"], artifact["tenant"], artifact["visibility"]) == (
        "mine", "peft", "local", "tenant",
    )  # fmt: skip
    assert artifact["base"] == {"repo_id": KEY.repo_id, "key": KEY.canonical, "commit": COMMIT}
    at = f"/{artifact['id']}"
    assert get(gateway, at).json() == artifact
    assert get(gateway).json()["artifacts"][0] == artifact
    for name, data in ADAPTER.items():
        assert get(gateway, f"{at}/files/{name}").content == data
    part = get(gateway, f"{at}/files/adapter_model.safetensors", range="bytes=10-19")
    assert (part.status_code, part.content) == (206, WEIGHTS[10:20])
    assert "cache-control" in part.headers
    gone = httpx.delete(f"{gateway.url}/v1/artifacts{at}")
    assert (gone.status_code, gone.content) == (204, b"")
    for path in (at, f"{at}/files/adapter_config.json"):
        assert "that is yours" in refused(get(gateway, path), 404)
    noted = actions(gateway)
    assert noted[-2:] == [("artifact uploaded", artifact["id"]), ("artifact deleted", artifact["id"])]


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize(
    ("files", "fields", "sentence"),
    [
        ({"adapter_config.json": CONFIG}, {}, "adapter_model.safetensors is missing"),
        (ADAPTER, {"kind": "diffusers-lora"}, "is no file of a diffusers-lora artifact"),
        (ADAPTER, {"kind": "pickle"}, "`kind` is 'pickle', expected 'peft',"),
        (ADAPTER, {"model": "lab/absent"}, "hosts no such model"),
        (ADAPTER, {"name": "a\x00b"}, "`name` is 'a\\x00b', expected one line without control"),
        (ADAPTER | {"adapter_model.bin": b"\x80\x04N."}, {}, "It may be a pickle"),
        ({"adapter_config.json": CONFIG, "adapter_model.bin": b"\x80\x04N."}, {}, "It may be a pickle"),
        ({"adapter_config.json": CONFIG, "../../adapter_model.safetensors": WEIGHTS}, {}, "is no file of a peft"),
        ({"adapter_config.json": CONFIG, "/etc/passwd": WEIGHTS}, {}, "is no file of a peft"),
        (ADAPTER | {"adapter_model.safetensors": b"\x80\x04N."}, {}, "no safetensors file"),
        (ADAPTER | {"adapter_model.safetensors": b"\xff" * 8 + WEIGHTS}, {}, "no safetensors file"),
        (ADAPTER | {"adapter_config.json": CONFIG.replace(b'"r": 2', b'"r": 99999')}, {}, "`adapters.max_rank`"),
    ],
)
def test_what_is_refused(gateway: Gateway, files: dict[str, bytes], fields: dict[str, str], sentence: str) -> None:
    before = get(gateway).json()
    assert sentence in refused(upload(gateway.url, files, **fields), 422)
    assert get(gateway).json() == before


@pytest.mark.usefixtures("state")
def test_a_name_that_comes_twice(gateway: Gateway) -> None:
    parts = [("files", (name, data)) for name, data in [*ADAPTER.items(), ("adapter_config.json", CONFIG)]]
    answer = httpx.post(f"{gateway.url}/v1/artifacts", data={"kind": "peft"}, files=parts)
    assert "Two files have one name" in refused(answer, 422)


def test_a_body_has_a_bound_of_its_own(start_gateway: Any) -> None:
    with start_gateway(limits={"artifact_bytes": 100_000, "payload_bytes": 50_000}) as gateway:
        large = ADAPTER | {"adapter_config.json": CONFIG + b" " * 70_000}
        assert upload(gateway.url, large).status_code == 201
        for padding in (110_000, 300_000):
            said = refused(upload(gateway.url, ADAPTER | {"adapter_config.json": CONFIG + b" " * padding}), 413)
            assert "`limits.artifact_bytes`" in said
        assert len(get(gateway).json()["artifacts"]) == 1


async def test_each_tenant_sees_its_own(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        prefix = gateway.config.redis.prefix
        one, other = (mint(redis_url, prefix, tenant) for tenant in ("lab-a", "lab-b"))
        admin = mint(redis_url, prefix, "ops", role="admin")
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
        artifact = upload(gateway.url, key=one).json()
        at = f"/{artifact['id']}"
        assert get(gateway, key=other).json() == {"artifacts": []}
        unknown = refused(get(gateway, "/" + "0" * 16, other), 404).replace("0" * 16, "ID")
        assert refused(get(gateway, at, other), 404).replace(artifact["id"], "ID") == unknown
        assert refused(get(gateway, f"{at}/files/adapter_config.json", other), 404)
        assert refused(httpx.delete(f"{gateway.url}/v1/artifacts{at}", headers={"ndif-api-key": other}), 404)
        assert refused(get(gateway, "?tenant=lab-a", other), 403)
        assert refused(get(gateway), 401)
        assert refused(upload(gateway.url), 401)
        # An operator sees that it is there, and may remove it, and does not read it.
        assert get(gateway, "?tenant=lab-a", admin).json()["artifacts"] == [artifact]
        assert refused(get(gateway, f"{at}/files/adapter_config.json", admin), 404)
        # A job is refused that names another's, just as one that names none.
        env = {"peft": f"artifact:{artifact['id']}"}
        headers = HEADERS | {"ndif-api-key": other}
        assert refused(gateway.post(headers=headers, env=env), 404).replace(artifact["id"], "ID") == unknown
        assert gateway.post(headers=HEADERS | {"ndif-api-key": one}, env=env).status_code == 200
        assert httpx.delete(f"{gateway.url}/v1/artifacts{at}", headers={"ndif-api-key": admin}).status_code == 204


async def test_a_job_is_refused_whose_adapter_cannot_be_its_models(gateway: Gateway, state: State) -> None:
    def sent(ref: str) -> str:
        return refused(gateway.post(env={"peft": ref}), 422)

    other = CONFIG.replace(b'"r": 2', b'"r": 2, "base_model_name_or_path": "lab/other"')
    stranger = upload(gateway.url, ADAPTER | {"adapter_config.json": other}).json()
    assert "was made for lab/other, and this model is lab/tiny" in sent(f"artifact:{stranger['id']}")
    # Who knows better says so.
    known = upload(gateway.url, ADAPTER | {"adapter_config.json": other}, model=KEY.repo_id).json()
    ref = f"artifact:{known['id']}"
    assert gateway.post(env={"peft": f"{ref}@{known['hash']}"}).status_code == 200
    assert "that is yours" in refused(gateway.post(env={"peft": f"{ref}@{'0' * 64}"}), 404)
    await publish(state, gateway.config, commit="f" * 40)
    assert f"at {COMMIT}; hosted here is {'f' * 40}" in sent(ref)


async def test_jobs_with_one_adapter_may_share_a_forward_and_with_another_not(gateway: Gateway, state: State) -> None:
    one, other = (f"artifact:{upload(gateway.url).json()['id']}" for _ in range(2))
    for second in (one, other, None):
        await state.queue.fail_all(KEY, "next")
        for ref in (one, second):
            assert gateway.post(env={"peft": ref}).status_code == 200
        lease = await state.queue.lease(KEY, "worker")
        assert lease is not None
        assert lease.has_company is (second == one)
