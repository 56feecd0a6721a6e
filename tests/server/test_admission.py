"""Every refusal of `POST /request`: its status, and a sentence that says what is wrong and what would be right."""

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import zstandard
from gateway_process import HEADERS, MODEL_KEY, PICKLE, Gateway, Worker, envelope, publish

from interlace.protocol.errors import InvalidPayload, LimitExceeded
from interlace.protocol.model import ModelKey
from interlace_server.doors.admission import check_payload
from interlace_state.settings.limits import Admission
from interlace_state.store import State

PATH = "nnsight.modeling.transformers.TransformersModel"


def detail(answer: httpx.Response, status: int) -> str:
    """The sentence of a refusal, which is all that a refusal holds."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["detail"]
    sentence: str = body["detail"]
    assert "\n" not in sentence
    return sentence


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({"nnsight-version": None}, "does not say its nnsight version (header `nnsight-version`)"),
        ({"nnsight-version": ""}, "does not say its nnsight version"),
        ({"nnsight-version": "newest"}, "'newest', which is no version"),
        ({"nnsight-version": "0.7.9"}, "needs nnsight 0.8.0 or newer and the client has 0.7.9: `pip install --upgrade"),
        ({"nnsight-version": "0.5"}, "needs nnsight 0.8.0 or newer"),
        ({"python-version": None}, "does not say its Python version (header `python-version`)"),
        ({"python-version": "three"}, "'three', which is no version"),
        ({"python-version": "3.9.18 (main, Jan 1 2024)"}, "needs Python 3.10 or newer and the client has 3.9"),
    ],
)
def test_old_clients(gateway: Gateway, headers: dict[str, str | None], sentence: str) -> None:
    sent = {name: value for name, value in (HEADERS | headers).items() if value is not None}
    assert sentence in detail(gateway.post(headers=sent), 400)


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize(
    "headers",
    [
        {"nnsight-version": "0.8.0"},
        {"nnsight-version": "0.8.1.dev3+g0123abc"},
        {"nnsight-version": "0.9.0rc1"},
        {"nnsight-version": "1.0"},
        {"python-version": "3.10.0"},
        {"python-version": "3.14.0rc1 (tags/v3.14.0rc1:0, Jul 22 2025, 10:00:00) [MSC v.1944 64 bit (AMD64)]"},
        {"python-version": "3.12.4 | packaged by conda-forge | (main, Jun 17 2024) \t[GCC 12.3.0]"},
    ],
)
def test_clients_that_are_new_enough(gateway: Gateway, headers: dict[str, str]) -> None:
    assert gateway.post(headers=HEADERS | headers).status_code == 200


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"id": "0" * 32}, "`id` is unknown"),
        ({"tenant": "root"}, "`tenant` is unknown"),
        ({"trusted": True}, "`trusted` is unknown"),
        ({"priority": 9, "email": "a@b"}, "`priority` is unknown; `email` is unknown. It takes model_key (required),"),
        ({"model_key": 7}, "`model_key` is 7, expected a text"),
        ({"compress": "perhaps"}, "`compress` is 'perhaps', expected true or false"),
        ({"env": []}, "`env` is a list, expected an object"),
        ({"session_id": "internal:channel"}, "`session_id`: expected the 32 hex digits"),
        ({"session_id": "A" * 32}, "`session_id`: expected the 32 hex digits"),
        ({"session_id": "a" * 32 + "\n"}, "`session_id`: expected the 32 hex digits"),
        ({"env": {"device": "cuda"}}, "unknown keys ['device']; allowed are: artifacts, attn_implementation,"),
        ({"env": {"edits": "artifact:0123456789abcdef"}}, "`env.edits` must be a list of up to 32 artifacts"),
        ({"env": {"edits": ["lab/lora"]}}, "`env.edits[0]` is 'lab/lora'; expected artifact:ID of an edit or a PEFT"),
        ({"env": {"artifacts": [7]}}, "`env.artifacts[0]` is '7'; expected an adapter's name, as a text"),
        ({"env": {"peft": "lab/adapter"}}, "this server fetches no such repository (allowed: none)"),
        ({"env": {"peft": "/etc"}}, "this server reads no such folder of its own"),
        ({"env": {"peft": "./adapter"}}, "`env.peft` is './adapter', which names no adapter here"),
        (
            {"env": {"lora": [{"adapter": "lab/adapter"}]}},
            "`env.lora` names an adapter, and lab/tiny is a",
        ),
        ({"env": {"attn_implementation": "kernels-community/x"}}, "allowed are: null, eager, sdpa"),
        ({"env": {"attn_implementation": ["sdpa"]}}, "allowed are: null, eager, sdpa"),
        ({"model_key": "os.system:{}"}, "starts with 'os.system'; it must be one of: nnsight.modeling"),
        ({"model_key": f"{PATH}:[]"}, "must end in a JSON object"),
        ({"model_key": PATH + ':{"repo_id": "../x"}'}, "expected 'name' or 'org/name'"),
        ({"model_key": PATH + ':{"repo_id": "a", "device_map": "cuda"}'}, "unknown fields ['device_map']"),
    ],
)
def test_wrong_envelopes(gateway: Gateway, changes: dict[str, Any], sentence: str) -> None:
    assert sentence in detail(gateway.post(**changes), 422)


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 5000, '{"model_key": "\\ud800"}'])
def test_envelopes_that_are_no_json_objects(gateway: Gateway, text: str) -> None:
    answer = httpx.post(f"{gateway.url}/request", data={"data": text}, files={"blob": PICKLE}, headers=HEADERS)
    assert "`data`" in detail(answer, 422)


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"data": {"data": json.dumps(envelope())}, "files": {"other": b"x"}}, "`blob` is missing"),
        ({"files": {"blob": PICKLE}}, "`data` is missing"),
        ({"json": envelope()}, "`data` is missing; `blob` is missing"),
        ({"data": {"data": json.dumps(envelope()), "blob": "text"}}, "`blob`: "),
    ],
)
def test_missing_parts(gateway: Gateway, form: dict[str, Any], field: str) -> None:
    assert field in detail(httpx.post(f"{gateway.url}/request", headers=HEADERS, **form), 422)


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_a_broken_form(gateway: Gateway, kind: str) -> None:
    answer = httpx.post(f"{gateway.url}/request", headers=HEADERS | {"content-type": kind}, content=b"--y nothing")
    assert detail(answer, 400)


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize(
    ("key", "named"),
    [
        ('{"repo_id": "lab/absent"}', "does not host lab/absent (text-generation)"),
        ('{"repo_id": "lab/tiny", "revision": "v2"}', "does not host lab/tiny (v2, text-generation)"),
        ('{"repo_id": "lab/tiny", "task": "fill-mask"}', "does not host lab/tiny (fill-mask)"),
        ('{"repo_id": "lab/tiny", "trust_remote_code": true}', "lab/tiny (text-generation, trust_remote_code)"),
    ],
)
def test_unknown_models_list_the_hosted_ones(gateway: Gateway, key: str, named: str) -> None:
    sentence = detail(gateway.post(model_key=f"{PATH}:{key}"), 404)
    assert named in sentence
    assert "Hosted models: lab/tiny (text-generation)." in sentence


async def test_a_model_that_failed_to_load_says_why(gateway: Gateway, state: State) -> None:
    key = ModelKey(repo_id="lab/broken")
    await publish(state, gateway.config, key, ready=False, failure="no weights in the folder")
    answer = await asyncio.to_thread(gateway.post, model_key=key.canonical)
    assert detail(answer, 503) == (
        "lab/broken (text-generation) could not be loaded on this server: no weights in the folder"
    )


@pytest.mark.parametrize(
    ("change", "status", "left"),
    [("withdrawn", 404, 1), ("failed", 503, 1), ("trusted", 403, 1), ("replica gone", 200, 2)],
)
async def test_a_model_that_has_changed_since_the_request_before(
    gateway: Gateway, state: State, change: str, status: int, left: int
) -> None:
    """The gateway goes by what it has read, as long as that still holds when the job is queued."""
    key = ModelKey(repo_id=f"lab/{change.replace(' ', '-')}")
    payloads = Path(gateway.config.store_url) / "payloads"
    await publish(state, gateway.config, key)
    before = len(list(payloads.glob("*")))
    assert (await asyncio.to_thread(gateway.post, model_key=key.canonical)).status_code == 200
    if change == "withdrawn":
        await state.models.withdraw(key)
    elif change == "trusted":
        await publish(state, gateway.config, key, trusted=("others",))
    else:
        await state.models.leave(key, "r1")
        await publish(state, gateway.config, key, ready=False, failure="gone" if change == "failed" else None)
    answer = await asyncio.to_thread(gateway.post, model_key=key.canonical)
    assert answer.status_code == status, answer.text
    assert await state.queue.length(key) == left
    assert len(list(payloads.glob("*"))) == before + left
    if status == 200:
        told = await asyncio.to_thread(gateway.get, f"/response/{answer.json()['id']}")
        assert told.json()["status"] == "DEPLOYING"
    await state.queue.fail_all(key, "the test is over")


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("key", [MODEL_KEY, PATH + ':{"task": "text-generation", "repo_id": "lab/tiny"}'])
def test_two_spellings_of_a_model_key_are_one_model(gateway: Gateway, key: str) -> None:
    assert gateway.post(model_key=key).status_code == 200


def frame(size: int | None, body: bytes = PICKLE) -> bytes:
    """A zstd frame whose header states a content size, or none."""
    compressor = zstandard.ZstdCompressor(level=6, write_content_size=size is not None).compressobj(
        **({} if size is None else {"size": size})
    )
    return compressor.compress(body) + compressor.flush()


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize(
    ("compress", "payload", "sentence"),
    [
        (True, b"", "is empty"),
        (False, b"", "is empty"),
        (True, PICKLE, "is not a zstd frame, although the request says `compress: true`"),
        (True, b"\x28\xb5\x2f\xfd", "is not a zstd frame"),
        (True, b"GIF89a" * 10, "is not a zstd frame"),
        (True, frame(None), "does not state its content size"),
        (False, b"import os", "is not a serialized nnsight trace"),
        (False, b"\x80", "is not a serialized nnsight trace"),
        (False, b"\x80\x09N.", "is not a serialized nnsight trace"),
        (False, zstandard.compress(PICKLE), "It is a zstd frame: say `compress: true`"),
    ],
)
def test_payloads_that_are_none(gateway: Gateway, compress: bool, payload: bytes, sentence: str) -> None:
    assert sentence in detail(gateway.post(payload, compress=compress), 422)


def test_a_payload_that_says_that_it_unpacks_to_too_much(gateway: Gateway, state: State) -> None:
    bomb = zstandard.compress(bytes(40 << 20))
    assert len(bomb) < 10_000
    sentence = detail(gateway.post(bomb), 413)
    assert sentence == (
        "The unpacked payload is over the limit of 33,554,432 bytes. "
        "The operator can raise it: `limits.unpacked_bytes` in the configuration, or for one tenant and at "
        "once: `interlace admin limits TENANT unpacked_bytes=N`."
    )


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65_535, 65_536, 65_791, 65_792, 1 << 20])
def test_the_size_in_a_frames_header(size: int) -> None:
    payload = zstandard.compress(bytes(size))
    check_payload(payload, compress=True, limits=Admission(unpacked_bytes=max(size, 1)))
    if size > 1:
        with pytest.raises(LimitExceeded):
            check_payload(payload, compress=True, limits=Admission(unpacked_bytes=size - 1))


def test_a_frame_that_states_eight_bytes_of_size() -> None:
    header = b"\x28\xb5\x2f\xfd" + bytes([0b11000000, 0x58]) + struct.pack("<Q", 1 << 50)
    with pytest.raises(LimitExceeded):
        check_payload(header, compress=True, limits=Admission())
    with pytest.raises(InvalidPayload):
        check_payload(header[:-1], compress=True, limits=Admission())


TOO_LARGE = (
    "The request's body is over the limit of 25,165,824 bytes. "
    "The operator can raise it: `limits.payload_bytes` in the configuration, or for one tenant and at once: "
    "`interlace admin limits TENANT payload_bytes=N`."
)


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("attempt", range(3))
def test_a_body_over_the_limit_reaches_the_stock_client_as_a_sentence(gateway: Gateway, attempt: int) -> None:
    assert detail(gateway.post(bytes(26 << 20)), 413) == TOO_LARGE


@pytest.mark.usefixtures("state")
def test_a_body_of_unknown_length_is_cut_at_the_limit(gateway: Gateway) -> None:
    def form() -> Iterator[bytes]:
        head = f'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n{json.dumps(envelope())}\r\n'
        yield head.encode() + b'--b\r\nContent-Disposition: form-data; name="blob"; filename="request"\r\n\r\n'
        for _ in range(26):
            yield bytes(1 << 20)
        yield b"\r\n--b--\r\n"

    headers = HEADERS | {"content-type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{gateway.url}/request", content=form(), headers=headers)
    assert detail(answer, 413) == TOO_LARGE


@pytest.mark.usefixtures("state")
def test_a_large_body_under_the_limit_is_taken(gateway: Gateway) -> None:
    assert gateway.post(zstandard.compress(PICKLE) + bytes(20 << 20)).status_code == 200


def test_a_refusal_by_headers_does_not_wait_for_the_body(gateway: Gateway) -> None:
    address = urlsplit(gateway.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(b"POST /request HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 400"


async def test_a_session_is_ours_open_and_for_one_job(gateway: Gateway, worker: Worker) -> None:
    folder = Path(gateway.config.store_url) / "payloads"
    before = set(folder.iterdir()) if folder.exists() else set()
    forged = await asyncio.to_thread(gateway.post, session_id="0" * 32)
    assert "was not given" in detail(forged, 409) or "is not open here" in detail(forged, 409)
    connection = await asyncio.to_thread(gateway.connect)
    session_id = json.loads(connection.recv())["session_id"]
    first = await asyncio.to_thread(gateway.post, session_id=session_id)
    assert first.status_code == 200
    second = await asyncio.to_thread(gateway.post, session_id=session_id)
    assert "has a job already" in detail(second, 409)
    connection.close()
    # A refused payload is not kept.
    assert set(folder.iterdir()) - before <= {folder / first.json()["id"]}


async def test_a_full_queue(start_gateway: Any, redis_url: str) -> None:
    from interlace_state.store import open_state

    with start_gateway(limits={"waiting_jobs": 2}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
        answers = [gateway.post() for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert "`limits.waiting_jobs`" in detail(answers[2], 429)
        assert int(answers[2].headers["retry-after"]) > 0
