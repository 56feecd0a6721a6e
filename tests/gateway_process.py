"""A real gateway process, a client's means to talk to it, and a worker's part played through our state API."""

import asyncio
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
import websocket
import zstandard
from redis.asyncio import Redis

from interlace.protocol.event import Ended, Log, StateChanged
from interlace.protocol.job import Cost, JobState
from interlace.protocol.model import ModelKey
from interlace_state import config_file
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.models import ModelCard, ModelState, Replica
from interlace_state.queue import Lease
from interlace_state.store import State
from interlace_state.tenants import Tenants

KEY = ModelKey(repo_id="lab/tiny")
#: As stock nnsight mints it.
MODEL_KEY = (
    "nnsight.modeling.transformers.TransformersModel:"
    '{"repo_id": "lab/tiny", "revision": null, "task": "text-generation"}'
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HEADERS = {"nnsight-version": "0.8.1", "python-version": sys.version}
PICKLE = b"\x80\x04N."
DEADLINE = 120.0  # seconds
#: The gateway's own program, with other times.
_HURRIED = """
import importlib, json, sys
from interlace_server.__main__ import main
for name, seconds in json.loads(sys.argv.pop(1)).items():
    module, _, constant = name.rpartition(".")
    assert hasattr(importlib.import_module(module), constant), name
    setattr(importlib.import_module(module), constant, seconds)
sys.exit(main())
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    """The condition's first true value; fails after the deadline."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {DEADLINE} s")


def whole_lines(path: Path) -> list[str]:
    """Of a file that somebody still writes to: its last line may be half of one."""
    return path.read_text(errors="replace").rpartition("\n")[0].splitlines()


def envelope(**changes: Any) -> dict[str, Any]:
    """The envelope of a stock client, with some fields changed."""
    env = {"attn_implementation": "sdpa"}
    return {"model_key": MODEL_KEY, "session_id": "", "compress": True, "env": env} | changes


@dataclass
class Gateway:
    """A gateway process."""

    url: str
    config: Config
    process: "subprocess.Popen[str]"
    log: Path
    #: The key that every call carries.
    key: str = ""

    def connect(self, timeout: float = DEADLINE) -> websocket.WebSocket:
        """A socket as stock nnsight opens it."""
        header = {"ndif-api-key": self.key} if self.key else None
        return websocket.create_connection(
            f"ws{self.url.removeprefix('http')}/subscribe", timeout=timeout, header=header
        )

    def post(
        self, payload: bytes | None = None, *, headers: dict[str, str] | None = None, **changes: Any
    ) -> httpx.Response:
        """A request as stock nnsight posts it; keywords change the envelope."""
        fields = envelope(**changes)
        if payload is None:
            payload = zstandard.compress(PICKLE) if fields["compress"] else PICKLE
        return httpx.post(
            f"{self.url}/request",
            data={"data": json.dumps(fields)},
            files={"blob": ("request", payload, "application/octet-stream")},
            headers=(HEADERS if headers is None else headers) | ({"ndif-api-key": self.key} if self.key else {}),
            timeout=DEADLINE,
        )

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=DEADLINE, headers={"ndif-api-key": self.key} if self.key else {})

    def actions(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of one event."""
        return [line for line in map(json.loads, whole_lines(self.log)) if line["event"] == name]


@contextmanager
def running(
    folder: Path, redis_url: str, hurried: Mapping[str, float] | None = None, **sections: Any
) -> Iterator[Gateway]:
    """Start a gateway on a free port, stop it in the end; keywords are sections of the configuration.

    One that others can reach gets a key first, which its calls carry. ``hurried`` are times of its modules, by their
    names, that a test does not want to wait for: ``{"interlace_server.sse._KEEP_ALIVE": 0.2}``.
    """
    file, log = folder / "config.json", folder / "gateway.log"
    sections["gateway"] = {"port": 0} | sections.get("gateway", {})
    redis = {"url": redis_url, "prefix": f"{folder.name}:"}
    file.write_text(json.dumps({"redis": redis, "state_dir": str(folder)} | sections))
    key = mint(redis_url, f"{folder.name}:") if config_file.load(file, {}).exposed else ""
    program = ["-c", _HURRIED, json.dumps(hurried)] if hurried else ["-m", "interlace_server"]
    command = [sys.executable, *program, "--config", str(file)]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on http://"), log.read_text()
        yield Gateway(line.split()[-1], config_file.load(file, {}), process, log, key)
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def mint(redis_url: str, prefix: str, tenant: str = "tests", **fields: Any) -> str:
    """A new key's secret."""

    async def run() -> str:
        async with Redis.from_url(redis_url, protocol=2) as redis:
            return (await Tenants(redis, Keys(prefix)).mint(tenant, **fields))[1]

    with ThreadPoolExecutor(1) as thread:  # the caller may be in an event loop
        return thread.submit(asyncio.run, run()).result()


async def publish(state: State, config: Config, key: ModelKey = KEY, *, ready: bool = True, **card: Any) -> None:
    """Host a model; its replica, if it has one, stays ready without heartbeats."""
    fields = {"commit": COMMIT, "dtype": "float32", "config": {"model_type": "gpt2"}} | card
    await state.models.publish(ModelCard(key=key, **fields))
    if ready:
        await state.models.beat(key, Replica(id="r1", state=ModelState.READY, pid=os.getpid(), node="n1"))
        await state.redis.persist(Keys(config.redis.prefix).replica(key.slug, "r1"))


class Worker:
    """A replica's part, one job at a time."""

    def __init__(self, state: State, key: ModelKey = KEY) -> None:
        self.state = state
        self.key = key

    async def lease(self) -> Lease:
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            if lease := await self.state.queue.lease(self.key, "worker"):
                return lease
        raise AssertionError(f"no job within {DEADLINE} s")

    async def start(self) -> Lease:
        """Lease a job and say that it runs."""
        lease = await self.lease()
        for state in (JobState.LEASED, JobState.RUNNING):
            assert await self.state.queue.record(lease, StateChanged(state=state))
        return lease

    async def log(self, lease: Lease, *lines: str) -> None:
        assert await self.state.queue.record(lease, *(Log(text=line) for line in lines))

    async def complete(self, lease: Lease, result: bytes) -> None:
        staged = self.state.results.stage()
        staged.write_bytes(result)
        ref = await self.state.results.put(lease.job, staged)
        cost = Cost(runtime=1.23456789, cpu_seconds=1.1, max_memory_usage=1 << 20, queued_seconds=0.5)
        await self.state.queue.finish(lease, Ended(state=JobState.COMPLETED, result=ref, cost=cost))

    async def end(self, lease: Lease, text: str, state: JobState = JobState.ERROR) -> None:
        await self.state.queue.finish(lease, Ended(state=state, text=text, cost=Cost(runtime=0.5)))


def saved(**values: Any) -> bytes:
    """A result file as a worker writes it."""
    with io.BytesIO() as file:
        torch.save(values, file)
        return zstandard.compress(file.getvalue())
