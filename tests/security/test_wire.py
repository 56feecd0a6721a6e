"""Promise: no payload, id, token, session or socket of a stranger gets at anything, or holds the gateway up."""

import json
import re
import secrets
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import cloudpickle
import httpx
import pytest
import websocket
import zstandard
from gateway_process import until
from hostile import PROMPT
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend

_HEADERS = {"nnsight-version": "0.8.1", "python-version": sys.version}
_ENDED = ("COMPLETED", "ERROR")


class Gadget:
    """Pickles as a call of ``exec``, made by whoever unpickles it."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self._source,)


class Capture(Backend):  # type: ignore[misc]
    """Serializes a trace as the stock client does, and keeps it."""

    payload = b""

    def __call__(self, tracer: Any) -> None:
        self.payload = RequestModel.serialize(tracer, True)


def post(siege: Any, payload: bytes, **changes: Any) -> httpx.Response:
    """A request as the stock client posts it."""
    envelope = {"model_key": siege.client.to_model_key(), "session_id": "", "compress": True, "env": {}} | changes
    return httpx.post(
        f"{siege.target.server.url}/request",
        data={"data": json.dumps(envelope)},
        files={"blob": ("request", payload, "application/octet-stream")},
        headers=_HEADERS,
        timeout=120,
    )


def ended(siege: Any, accepted: httpx.Response) -> dict[str, Any]:
    """The last update of a job that was taken in."""
    assert accepted.status_code == 200, accepted.text
    url = f"{siege.target.server.url}/response/{accepted.json()['id']}"

    def last() -> dict[str, Any] | None:
        update: dict[str, Any] = httpx.get(url, timeout=120).json()
        return update if update["status"] in _ENDED else None

    found: dict[str, Any] = until(last, "the job ended")
    siege.target.holds(json.dumps(found))
    return found


def reading(client: Any) -> bytes:
    """An honest payload."""
    backend = Capture()
    with client.trace(PROMPT, backend=backend):
        found = client.lm_head.output.save()
    return backend.payload


def failure(siege: Any, payload: bytes, **changes: Any) -> str:
    update = ended(siege, post(siege, payload, **changes))
    assert update["status"] == "ERROR", update
    siege.unharmed()
    return str(update["description"])


def packed(payload: bytes) -> bytes:
    return zstandard.compress(payload)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise RuntimeError(open({secret!r}).read())", "FileNotFoundError"),
        ("import os; os.fork()", "not permitted"),
        ("import subprocess; subprocess.run(['sh', '-c', 'echo > {marker}'])", "(not permitted|No such file)"),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "not permitted"),
        ("open({marker!r}, 'w')", "(FileNotFoundError|PermissionError|Read-only)"),
        ("import os; os._exit(9)", "exit code 9"),
        ("while True: pass", "limits.wall_seconds"),
        ("bytearray(1 << 30)", "limits.memory_bytes|memory"),
    ],
    ids=["secret", "fork", "shell", "socket", "file", "exit", "loop", "memory"],
)
def test_a_gadget_that_runs_when_the_payload_is_read(siege: Any, home: Path, source: str, says: str) -> None:
    marker = home / f"gadget-{secrets.token_hex(4)}"
    source = source.format(secret=siege.target.paths["secret"], marker=str(marker))
    text = failure(siege, packed(cloudpickle.dumps(Gadget(source))))
    assert re.search(says, text), text
    assert not marker.exists()


def test_a_gadget_in_the_result_is_not_run_by_the_server(siege: Any, home: Path) -> None:
    """The parent does not look into a result: what lies in it runs nowhere but where its own client loads it."""
    marker = home / "gadget-in-result"
    backend = Capture()
    client = siege.client
    source = f"""
import os
class Gadget:
    def __reduce__(self):
        return exec, ("open({str(marker)!r}, 'w')",)
"""
    with client.trace(PROMPT, backend=backend):
        scope: dict[str, Any] = {}
        exec(source, scope)
        found = [scope["Gadget"]()].save()
    update = ended(siege, post(siege, backend.payload, env=client._remoteable_get_env()))
    assert update["status"] == "COMPLETED"
    blob = httpx.get(update["data"], timeout=120).content
    assert str(marker).encode() in zstandard.ZstdDecompressor().decompress(blob, max_output_size=1 << 20)
    siege.unharmed()
    assert not marker.exists()


@pytest.mark.parametrize(
    "payload",
    [b"\x80\x04N.", b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"cos\nsystem\n(S'true'\ntR.",
     b"\x80\x04\x8d" + b"\xff" * 8,
     b"\x80\x04" + b"(" * 100_000, b"\x80\x04]" + b"2" * 100_000 + b"a" * 100_000 + b"."],
    ids=["none", "frame", "global", "length", "marks", "duplicates"],
)  # fmt: skip
def test_a_pickle_that_is_no_trace(siege: Any, payload: bytes) -> None:
    assert failure(siege, packed(payload))


def test_a_bomb_that_says_its_size(siege: Any) -> None:
    refused = post(siege, packed(bytes(64 << 20)))
    assert refused.status_code in (413, 422), refused.text
    assert "limits.unpacked_bytes" in refused.text
    siege.unharmed()


def test_a_bomb_that_lies_about_its_size(siege: Any) -> None:
    """The first frame is small and says so; what follows it is not."""
    bomb = packed(b"\x80\x04N.") + packed(bytes(64 << 20))
    assert failure(siege, bomb)


def test_a_bomb_that_does_not_say_its_size(siege: Any) -> None:
    packer = zstandard.ZstdCompressor(write_content_size=False)
    refused = post(siege, packer.compress(bytes(64 << 20)))
    if refused.status_code == 200:
        assert "limits.unpacked_bytes" in str(ended(siege, refused)["description"])
    else:
        assert refused.status_code in (413, 422), refused.text
    siege.unharmed()


def test_a_bomb_that_says_too_little(siege: Any) -> None:
    """A frame header that states 16 bytes before a body of 64 MiB."""
    whole = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(64 << 20))
    assert whole[4] >> 6 == 2, "the size is a field of four bytes"
    start = 5 + (1 - (whole[4] >> 5 & 1))
    assert failure(siege, whole[:start] + (16).to_bytes(4, "little") + whole[start + 4 :])


def test_a_body_that_is_too_long(siege: Any) -> None:
    assert post(siege, secrets.token_bytes(5 << 20)).status_code == 413
    siege.unharmed()


@pytest.mark.parametrize(
    "path",
    ["/response/{guess}", "/response/..%2f..%2fetc%2fpasswd", "/response/%00", "/response/" + "a" * 9000,
     "/response/*", "/response/{guess}%0d%0aSet-Cookie:x", "/results/{guess}", "/results/..%2f..%2f..%2fetc%2fpasswd",
     "/results/{guess}.{guess}", "/results/" + "A" * 9000, "/results/%2e%2e/%2e%2e/secret", "/hf/../../etc/passwd",
     "/hf/interlace-tests/gpt2-tiny/resolve/main/..%2f..%2fsecret",
     "/hf/interlace-tests/gpt2-tiny/resolve/main/model.safetensors", "/hf//etc/passwd/resolve/main/x"],
)  # fmt: skip
def test_an_id_or_path_that_is_guessed(siege: Any, path: str) -> None:
    for _ in range(5):
        answer = httpx.get(siege.target.server.url + path.format(guess=secrets.token_hex(16)), timeout=120)
        assert answer.status_code in (400, 404, 414, 422), answer.text
        siege.target.holds(answer.text)
        assert "root:" not in answer.text
    siege.unharmed()


def test_a_link_that_was_altered(siege: Any) -> None:
    payload, env = reading(siege.client), siege.client._remoteable_get_env()
    update = ended(siege, post(siege, payload, env=env))
    base, _, token = update["data"].rpartition("/")
    assert httpx.get(f"{base}/{token}", timeout=120).status_code == 200
    for at in range(0, len(token), 3):
        other = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        assert httpx.get(f"{base}/{other}", timeout=120).status_code in (404, 422), at
    siege.unharmed()


@pytest.mark.parametrize(
    "session_id",
    ["0" * 32, secrets.token_hex(16), "../../x", "*", "a" * 9000, "0" * 31 + "\n", {"id": 1}, 7, None],
    ids=["zeros", "guessed", "path", "pattern", "long", "newline", "object", "number", "null"],
)
def test_a_session_that_is_made_up(siege: Any, session_id: Any) -> None:
    refused = post(siege, reading(siege.client), session_id=session_id)
    assert refused.status_code in (404, 409, 422), refused.text
    siege.unharmed()


@pytest.mark.parametrize(
    "changes",
    [{"id": "0" * 32}, {"tenant": "admin"}, {"limits": {"wall_seconds": 999}}, {"trusted": True}, {"priority": 9},
     {"env": {"peft": "evil/adapter"}}, {"env": {"attn_implementation": "evil/kernel"}},
     {"model_key": "os.system:{}"},
     {"model_key": 'nnsight.modeling.transformers.TransformersModel:{"repo_id": "/etc"}'},
     {"model_key": 'nnsight.modeling.transformers.TransformersModel:{"repo_id": "interlace-tests/gpt2-tiny", '
                   '"trust_remote_code": true}'}],
    ids=["id", "tenant", "limits", "trusted", "priority", "adapter", "attention", "class", "path", "remote code"],
)  # fmt: skip
def test_a_field_that_is_not_the_clients_to_set(siege: Any, changes: dict[str, Any]) -> None:
    refused = post(siege, packed(b"\x80\x04N."), **changes)
    assert refused.status_code in (400, 404, 422), refused.text
    siege.unharmed()


def test_somebody_elses_session_takes_one_job_only(siege: Any) -> None:
    """A session that has its job takes no second one: what its owner reads is not replaced."""
    payload, env = reading(siege.client), siege.client._remoteable_get_env()
    with _connect(siege) as owner:
        session_id = json.loads(owner.recv())["session_id"]
        mine = post(siege, payload, session_id=session_id, env=env).json()["id"]
        second = post(siege, payload, session_id=session_id, env=env)
        assert second.status_code in (404, 409, 422), second.text
        ids = set()
        while not isinstance(message := owner.recv(), bytes):
            ids.add(json.loads(message)["id"])
        assert ids == {mine}
        assert RemoteBackend.parse(message).id == mine
    siege.unharmed()


def _connect(siege: Any) -> Any:
    url = siege.target.server.url.replace("http", "ws", 1)
    return closing(websocket.create_connection(f"{url}/subscribe", timeout=120))


def test_sockets_that_close_at_once(siege: Any) -> None:
    for _ in range(40):
        with _connect(siege):
            pass
    siege.unharmed()


def test_sockets_that_vanish(siege: Any) -> None:
    for _ in range(20):
        socket_ = websocket.create_connection(
            siege.target.server.url.replace("http", "ws", 1) + "/subscribe", timeout=120
        )
        socket_.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        socket_.sock.close()
    siege.unharmed()


@pytest.mark.parametrize(
    "frame",
    [b"\xff" * 4096, b"\x81\x85abcd" + b"\xff" * 5, b"\x82\xff" + b"\x7f" + b"\xff" * 15, b"\x89\xff" + b"\0" * 300,
     b"\xc1\x80abcd", b"\x01\x80abcd" * 500, b"GET / HTTP/1.1\r\n\r\n"],
    ids=["garbage", "no utf-8", "2**63 bytes", "long ping", "reserved bits", "fragments", "http"],
)  # fmt: skip
def test_frames_that_break_the_rules(siege: Any, frame: bytes) -> None:
    with _connect(siege) as stream:
        stream.recv()
        stream.sock.sendall(frame)
        siege.unharmed()


def test_messages_that_are_huge(siege: Any) -> None:
    with _connect(siege) as stream:
        stream.recv()
        try:
            for _ in range(4):
                stream.send_binary(bytes(24 << 20))
        except (OSError, websocket.WebSocketException):
            pass  # the gateway may hang up
        siege.unharmed()


def test_a_reader_that_never_reads(siege: Any) -> None:
    """Its job's lines wait, or are dropped; nobody else's do."""
    backend = Capture()
    client = siege.client
    with client.trace(PROMPT, backend=backend):
        for _ in range(600):
            print("x" * 99)
        found = client.lm_head.output.save()
    streams = []
    for _ in range(3):
        stream = websocket.create_connection(
            siege.target.server.url.replace("http", "ws", 1) + "/subscribe", timeout=120
        )
        session_id = json.loads(stream.recv())["session_id"]
        assert post(siege, backend.payload, session_id=session_id, env=client._remoteable_get_env()).status_code == 200
        streams.append(stream)
    siege.unharmed()
    for stream in streams:
        stream.close()
    siege.unharmed()


@pytest.mark.parametrize(
    "opening",
    [b"", b"GET", b"POST /request HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n",
     b"GET /subscribe HTTP/1.1\r\nUpgrade: websocket\r\n", b"\x16\x03\x01\x02\x00",
     b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 4000,
     b"POST /request HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffff\r\n"],
    ids=["nothing", "a word", "no body", "half a handshake", "TLS", "headers", "chunk"],
)  # fmt: skip
def test_connections_that_say_half_of_something(siege: Any, opening: bytes) -> None:
    host, port = siege.target.server.url.removeprefix("http://").split(":")
    lines = [socket.create_connection((host, int(port)), 30) for _ in range(25)]
    for line in lines:
        try:
            line.sendall(opening)
        except OSError:
            continue  # refused already
    siege.unharmed()
    for line in lines:
        line.close()
