"""Who is let in, to what, and how often: a real gateway, keys in a real Redis."""

import asyncio
import hashlib
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from gateway_process import HEADERS, PICKLE, Gateway, Worker, envelope, mint, publish, saved

from interlace.protocol.model import ModelKey
from interlace_server.app import create_app
from interlace_server.drain import Drain
from interlace_state.config import Config
from interlace_state.settings.gateway import GatewayConfig
from interlace_state.settings.services import RedisConfig
from interlace_state.store import open_state

PRIVATE = ("/response/" + "0" * 32, "/whoami", "/nothing")


def get(gateway: Gateway, path: str, key: str = "") -> httpx.Response:
    return httpx.get(f"{gateway.url}{path}", headers={"ndif-api-key": key} if key else {})


def post(gateway: Gateway, key: str, **changes: Any) -> httpx.Response:
    return gateway.post(headers={**HEADERS, "ndif-api-key": key}, **changes)


async def test_the_first_key_closes_the_door(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        assert get(gateway, "/whoami").json() == {"email": None, "tags": []}
        key = mint(redis_url, gateway.config.redis.prefix, "lab-a")
        for path in PRIVATE:
            for wrong in ("", "il-guess", "x" * 5000, key[:-1]):
                answer = get(gateway, path, wrong)
                assert answer.status_code == 401, (path, wrong)
                assert "interlace keys create" in answer.json()["detail"]
        assert get(gateway, "/whoami", key).json() == {"email": "lab-a", "tags": ["user"]}
        for scheme in ("Bearer ", "bearer ", "BEARER  "):
            bearer = httpx.get(f"{gateway.url}/whoami", headers={"authorization": f"{scheme}{key}"})
            assert bearer.json()["email"] == "lab-a"
        for path in ("/ping", "/status", "/env", "/healthz"):
            assert get(gateway, path).status_code == 200
        log = gateway.log.read_text() + (gateway.config.state_dir / "audit.jsonl").read_text()
        assert key not in log
        assert "refused" in log


async def test_a_socket_without_a_key_is_told_so_in_a_frame(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        mint(redis_url, gateway.config.redis.prefix)
        socket = await asyncio.to_thread(gateway.connect)
        assert len(json.loads(socket.recv())["session_id"]) == 32
        last = json.loads(socket.recv())
        assert last["status"] == "ERROR"
        assert "API key" in last["description"]
        socket.close()
        (line,) = refused_lines(gateway)
        assert (line["path"], line["why"], line["address"]) == ("/subscribe", "unauthorized", "127.0.0.1")


def refused_lines(gateway: Gateway) -> list[dict[str, Any]]:
    """The audit log's lines on refusals."""
    lines = (gateway.config.state_dir / "audit.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["action"] == "refused"]


async def test_a_body_that_is_too_long_and_a_page_are_in_the_audit_log(start_gateway: Any) -> None:
    with start_gateway(limits={"payload_bytes": 9000, "unpacked_bytes": 50}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
        for payload in (bytes(20_000), b"\x80\x04" + bytes(100)):  # by its header; by what it would unpack to
            assert gateway.post(payload, compress=False).status_code == 413
        # without a header that says it, as it comes
        data = iter([b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n', *[b"x" * 5000] * 3])
        kind = {"content-type": "multipart/form-data; boundary=b"}
        assert httpx.post(f"{gateway.url}/request", content=data, headers=HEADERS | kind).status_code == 413
        assert gateway.post(headers=HEADERS | {"origin": "http://evil.example"}).status_code == 403
        found = [(line["why"], line["path"]) for line in refused_lines(gateway)]
        assert found.count(("limit_exceeded", "/request")) == 3
        assert found[-1] == ("origin", "/request")


async def test_a_revoked_key_ends_with_the_next_request(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            record, key = await state.tenants.mint("lab-a")
            await state.tenants.mint("lab-b")
            assert get(gateway, "/whoami", key).status_code == 200
            await state.tenants.revoke(record.id)
            assert get(gateway, "/whoami", key).status_code == 401


async def test_jobs_sessions_and_results_are_their_tenants_own(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            ours, theirs = (mint(redis_url, gateway.config.redis.prefix, name) for name in ("lab-a", "lab-b"))
            gateway.key = ours
            socket = await asyncio.to_thread(gateway.connect)
            session = json.loads(socket.recv())["session_id"]
            stolen, made_up = post_as(gateway, theirs, session), post_as(gateway, theirs, "0" * 32)
            assert (stolen.status_code, stolen.json()) == (made_up.status_code, made_up.json()) == (409, stolen.json())
            job_id = post_as(gateway, ours, session).json()["id"]
            await Worker(state).complete(await Worker(state).start(), saved())
            assert get(gateway, f"/response/{job_id}", ours).json()["status"] == "COMPLETED"
            anothers = get(gateway, f"/response/{job_id}", theirs)
            nobodys = get(gateway, f"/response/{'0' * 32}", theirs)
            assert anothers.status_code == nobodys.status_code == 404
            assert anothers.json()["detail"].replace(job_id, "0" * 32) == nobodys.json()["detail"]
            socket.close()


def post_as(gateway: Gateway, key: str, session_id: str) -> httpx.Response:
    gateway.key, before = key, gateway.key
    try:
        return gateway.post(session_id=session_id)
    finally:
        gateway.key = before


async def test_a_key_for_some_models_sees_no_others(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
        key = mint(redis_url, gateway.config.redis.prefix, models=["lab/other"])
        answer = post(gateway, key)
        assert answer.status_code == 404
        assert "does not host lab/tiny" in answer.json()["detail"]


async def test_a_resident_model_takes_jobs_of_trusted_tenants_only(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config, trusted=("lab",))
        prefix = gateway.config.redis.prefix
        trusted, other = (mint(redis_url, prefix, tenant=name) for name in ("lab", "guests"))
        answer = post(gateway, other)
        assert answer.status_code == 403
        assert "for tenants that its operator trusts; yours (guests) is not" in answer.json()["detail"]
        assert post(gateway, trusted).status_code == 200


async def test_a_key_for_some_models_is_not_told_the_names_of_others(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
        key = mint(redis_url, gateway.config.redis.prefix, models=["lab/other"])
        answer = post(gateway, key, model_key=ModelKey(repo_id="lab/other").canonical)
        assert answer.status_code == 404
        assert "lab/tiny" not in answer.json()["detail"]


async def test_a_key_for_some_models_narrows_down_what_everybody_is_shown(start_gateway: Any, redis_url: str) -> None:
    """Who sends none, or another service's, is shown all: stock clients send none there."""
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            for name in ("lab/tiny", "lab/other"):
                await publish(state, gateway.config, ModelKey(repo_id=name))
        some = mint(redis_url, gateway.config.redis.prefix, models=["lab/other"])
        every = mint(redis_url, gateway.config.redis.prefix)
        paths = ("/status", "/readyz", "/hf/api/models/lab/tiny", "/hf/lab/none/resolve/main/config.json")
        for path in paths:
            shown = {key: get(gateway, path, key).text for key in ("", "hf_x", every, some)}
            assert shown[""] == shown["hf_x"] == shown[every]
            assert "lab/tiny" in shown[""], path
        for path in paths[:2]:
            assert "lab/tiny" not in get(gateway, path, some).text, path
            assert "lab/other" in get(gateway, path, some).text, path
        headers = {"authorization": f"Bearer {some}"}  # as huggingface_hub sends its token
        hidden = httpx.get(f"{gateway.url}/hf/api/models/lab/tiny", headers=headers)
        assert (hidden.status_code, hidden.headers["x-error-code"]) == (404, "RepoNotFound")
        assert "Hosted models: lab/other." in hidden.json()["detail"]
        assert httpx.get(f"{gateway.url}/hf/api/models/lab/other", headers=headers).json()["id"] == "lab/other"


async def test_a_full_disk_under_the_audit_log_stops_nobody(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
        key = mint(redis_url, gateway.config.redis.prefix, "lab-a")
        path = gateway.config.state_dir / "audit.jsonl"
        path.unlink(missing_ok=True)
        path.mkdir()  # a write fails, as on a full disk
        assert post(gateway, key).status_code == 200
        assert get(gateway, "/whoami").status_code == 401
        assert gateway.actions("audit_failed")


async def test_each_tenants_limits_are_its_own(start_gateway: Any, redis_url: str) -> None:
    sections = {"roles": {"user": {"payload_bytes": 600}}, "tenants": {"lab-b": {"payload_bytes": 1 << 20}}}
    with start_gateway(**sections) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
        small, large = (mint(redis_url, gateway.config.redis.prefix, name) for name in ("lab-a", "lab-b"))
        refused = post(gateway, small, compress=False, payload=b"\x80\x04" + bytes(5000))
        assert refused.status_code == 413
        assert "`limits.payload_bytes`" in refused.json()["detail"]
        assert "600" in refused.json()["detail"]
        assert post(gateway, large, compress=False, payload=b"\x80\x04" + bytes(5000)).status_code == 200


async def test_requests_over_the_rate_are_told_when_to_come_again(start_gateway: Any, redis_url: str) -> None:
    with start_gateway(tenants={"lab-a": {"requests_per_minute": 3}}) as gateway:
        key = mint(redis_url, gateway.config.redis.prefix, "lab-a")
        answers = [get(gateway, "/whoami", key) for _ in range(8)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused  # a minute may have turned between them, once
        assert 0 < int(refused[0].headers["retry-after"]) <= 60
        assert "`limits.requests_per_minute`" in refused[0].json()["detail"]
        assert (
            get(gateway, "/v1/tenants/lab-a", mint(redis_url, gateway.config.redis.prefix, "lab-b")).status_code == 403
        )
        assert {(line["why"], line["tenant"]) for line in refused_lines(gateway)} == {
            ("too_many", "lab-a"),
            ("forbidden", "lab-b"),
        }
        assert all(line["key"] for line in refused_lines(gateway))
        assert get(gateway, "/ping").status_code == 200


async def test_requests_without_a_key_have_a_rate_too(start_gateway: Any) -> None:
    with start_gateway(limits={"requests_per_minute": 3}) as gateway:
        answers = [get(gateway, "/whoami") for _ in range(8)]
        refusals = [answer for answer in answers if answer.status_code == 429]
        assert len(refusals) >= 2  # a minute may have turned between them, once
        assert 0 < int(refusals[0].headers["retry-after"]) <= 60
        assert "`limits.requests_per_minute`" in refusals[0].json()["detail"]
        assert get(gateway, "/ping").status_code == 200


def test_a_gateway_that_others_reach_does_not_start_without_a_key(tmp_path: Path, redis_url: str) -> None:
    file = tmp_path / "config.json"
    gateway = {"port": 0, "public_url": "https://interlace.lab"}
    redis = {"url": redis_url, "prefix": "no-keys:"}
    file.write_text(json.dumps({"state_dir": str(tmp_path), "redis": redis, "gateway": gateway}))
    command = [sys.executable, "-m", "interlace_server", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert "interlace keys create --tenant NAME" in done.stderr


async def test_where_others_reach_us_nobody_needs_no_key(tmp_path: Path, redis_url: str) -> None:
    """Not even when the last one is revoked."""
    public = GatewayConfig(public_url="https://interlace.lab")
    config = Config(state_dir=tmp_path, redis=RedisConfig(url=redis_url, prefix="last-key:"), gateway=public)
    async with open_state(config) as state:
        transport = httpx.ASGITransport(create_app(config, state, Drain()))
        async with httpx.AsyncClient(transport=transport, base_url="https://interlace.lab") as client:
            key, secret = await state.tenants.mint("lab-a")
            assert (await client.get("/whoami", headers={"ndif-api-key": secret})).json()["email"] == "lab-a"
            assert await state.tenants.revoke(key.id)
            for headers in ({}, {"ndif-api-key": secret}):
                assert (await client.get("/whoami", headers=headers)).status_code == 401


async def test_what_is_open_to_all_takes_nothing_of_a_keys_rate(start_gateway: Any, redis_url: str) -> None:
    with start_gateway(limits={"requests_per_minute": 3}) as gateway:
        key = mint(redis_url, gateway.config.redis.prefix, "lab-a")
        assert {get(gateway, "/status", key).status_code for _ in range(12)} == {200}
        assert get(gateway, "/whoami", key).status_code == 200


async def test_what_was_accepted_is_in_the_audit_log(start_gateway: Any, redis_url: str) -> None:
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            record, key = await state.tenants.mint("lab-a")
        job_id = post(gateway, key, payload=PICKLE, compress=False).json()["id"]
        path = gateway.config.state_dir / "audit.jsonl"
        (line,) = [json.loads(text) for text in path.read_text().splitlines() if job_id in text]
        assert (line["action"], line["tenant"], line["key"]) == ("accepted", "lab-a", record.id)
        assert line["payload_sha256"] == hashlib.sha256(PICKLE).hexdigest()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_every_answer_says_how_little_a_browser_may_do_with_it(gateway: Gateway) -> None:
    for path in ("/ping", "/status", "/nothing"):
        headers = gateway.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "no-store" in headers["cache-control"]


def test_the_envelope_cannot_say_who_asks(gateway: Gateway) -> None:
    for field in ("tenant", "api_key", "role", "trusted", "id", "limits"):
        assert gateway.post(**{field: "admin"}).status_code == 422, field
    assert "tenant" not in envelope()
