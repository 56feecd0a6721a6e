"""What a minimal remote trace costs beside the same trace run locally, in the same minutes on the same weights.

    python benchmarks/minimal_trace.py [--runtime ray|process] [--rounds 60] [--key] [--peer URL] [--json FILE]

Eight tokens, one hidden state saved, on SmolLM2-135M-Instruct in fp32. Starts its own Interlace, loads the model here
too, and takes all times in turn (local, remote, ...):

local   the trace run here
stock   the same with `remote=True`: the stock client, unmodified
server  the same request, its payload made ahead, over a kept connection: from the last byte of the POST to the last
        frame, less the forward itself, by this round's local trace (`share`) and by what the job's own process
        measured of its forward (`around`)
peer    as `stock`, on another server of nnsight's protocol that hosts the same model, where `--peer` names one

Prints medians, p95 and ratios, where the server's time goes as it says itself, the time from `up` to ready, and the
resident memory of every process of the service.
"""

import argparse
import http.client
import json
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import service
import websocket

MODEL = "smollm2-135m-instruct"
REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
LAYER = 15


class Bare:
    """One request, over and over, with next to nothing on the client's side: what is left is the server."""

    def __init__(self, url: str, backend: Any, payload: bytes, key: str) -> None:
        self._address = urlsplit(url).netloc
        self._headers = {"nnsight-version": "0.8.1", "python-version": "3.11.0"}
        if key:
            self._headers["ndif-api-key"] = key
        self._http = http.client.HTTPConnection(self._address)
        self._envelope = {"model_key": backend.model_key, "compress": backend.compress, "env": backend.env}
        self._payload = payload

    def request(self) -> tuple[float, str]:
        """Seconds from the last byte of the POST to the last frame, and the job's id."""
        socket = websocket.create_connection(f"ws://{self._address}/subscribe", header=self._headers)
        session = json.loads(socket.recv())["session_id"]
        kind, body = self._form(session)
        self._http.request("POST", "/request", body, self._headers | {"Content-Type": kind})
        sent = time.perf_counter()
        while not isinstance(frame := socket.recv(), bytes):
            status = json.loads(frame)
            if status["status"] == "ERROR":
                raise SystemExit(f"the job failed: {status['description']}")
        seconds = time.perf_counter() - sent
        socket.close()
        return seconds, json.loads(self._http.getresponse().read())["id"]

    def _form(self, session: str) -> tuple[str, bytes]:
        """The multipart form that nnsight sends: its type and its bytes."""
        mark = uuid.uuid4().hex.encode()
        envelope = json.dumps(self._envelope | {"session_id": session}).encode()
        parts = [
            b'Content-Disposition: form-data; name="data"\r\n\r\n' + envelope,
            b'Content-Disposition: form-data; name="blob"; filename="request"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n" + self._payload,
        ]
        body = b"".join(b"--" + mark + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + mark + b"--\r\n"
        return f"multipart/form-data; boundary={mark.decode()}", body


def measure(
    server: service.Service, home: Path, rounds: int, threads: int, peer: str | None, key: str
) -> dict[str, Any]:
    """Take all times in turn."""
    service.stock_client(server.url, home, threads)
    import torch
    from nnsight import CONFIG, TransformersModel
    from nnsight.intervention.backends.remote import RemoteBackend

    if key:
        CONFIG.API.APIKEY = key
    there, here = TransformersModel(REPO, task="text-generation"), service.local_model(MODEL)
    tokens = torch.arange(100, 108)[None]

    class Serialized(RemoteBackend):
        """Keeps the payload in place of sending it."""

        def __call__(self, tracer: Any = None) -> None:
            self.payload = self._serialize(tracer)

    def trace(model: Any, **how: Any) -> tuple[float, Any]:
        begun = time.perf_counter()
        hidden = None
        with model.trace(tokens, **how):
            hidden = model.model.layers[LAYER].output.save()
        return time.perf_counter() - begun, hidden

    backend = Serialized(there.to_model_key(), env=there._remoteable_get_env())
    trace(there, backend=backend)
    bare = Bare(server.url, backend, backend.payload, key)

    def elsewhere() -> float:
        return trace(there, backend=RemoteBackend(backend.model_key, host=peer, env=backend.env))[0] if peer else 0.0

    for _ in range(3):
        first, second, _, _ = trace(here)[1], trace(there, remote=True)[1], bare.request(), elsewhere()
    torch.testing.assert_close(first, second)
    peers = []
    taken = []
    for _ in range(rounds):
        taken.append((trace(here)[0], trace(there, remote=True)[0], *bare.request()))
        peers.append(elsewhere())
    steps = service.steps(server, [job_id for *_, job_id in taken])
    figures = {"peer": summary(peers)} if peer else {}
    return figures | {
        "local": summary([local for local, *_ in taken]),
        "stock": summary([stock for _, stock, *_ in taken]),
        "stock added": summary([stock - local for local, stock, *_ in taken]),
        "server": summary([bare for _, _, bare, _ in taken]),
        "server share": summary([bare - local for local, _, bare, _ in taken]),
        "server around": summary([bare - steps[job_id]["forward"] for _, _, bare, job_id in taken]),
        "steps": {name: summary([steps[job_id][name] for *_, job_id in taken]) for name in next(iter(steps.values()))},
        "ratio_p50": round(statistics.median(stock / local for local, stock, *_ in taken), 2),
    }


def summary(seconds: list[float]) -> dict[str, float]:
    """p50 and p95 in milliseconds."""
    return {
        "p50_ms": round(1000 * statistics.median(seconds), 1),
        "p95_ms": round(1000 * statistics.quantiles(seconds, n=20)[-1], 1),
    }


def memory(pid: int) -> list[tuple[str, int]]:
    """(what, resident MiB) of the service's processes, the largest first."""
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        try:
            words = [Path(word).name for word in one.cmdline()]
            found.append((" ".join(words)[:70] or one.name(), one.memory_info().rss >> 20))
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda pair: -pair[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=("ray", "process"), default="process")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1, help="processor threads, here and there")
    parser.add_argument("--key", action="store_true", help="send an API key with all, as to a shared server")
    parser.add_argument("--peer", metavar="URL", help="another server to send the same to, in turn")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        models = [{"source": MODEL, "threads": arguments.threads}]
        with service.running(folder, {"runtime": arguments.runtime, "models": models}) as server:
            key = server.key("bench") if arguments.key else ""
            figures = measure(server, folder / "hf", arguments.rounds, arguments.threads, arguments.peer, key)
            processes = memory(server.process.pid)
    ready = server.ready_seconds
    figures |= service.circumstances() | {
        "runtime": arguments.runtime,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "key": arguments.key,
        "ready_seconds": round(ready, 1),
        "resident_mib": processes,
    }
    print(f"{'':16}{'p50 ms':>10}{'p95 ms':>10}")
    rows = ("local", "stock", "stock added", "server", "server share", "server around", "peer")
    for name in (row for row in rows if row in figures):
        print(f"{name:16}{figures[name]['p50_ms']:>10}{figures[name]['p95_ms']:>10}")
    for name, took in figures["steps"].items():
        print(f"  {name:14}{took['p50_ms']:>10}{took['p95_ms']:>10}")
    print(f"stock / local at p50: {figures['ratio_p50']};  from `up` to ready: {ready:.1f} s ({arguments.runtime})")
    for what, mib in processes:
        print(f"{mib:>8} MiB  {what}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
