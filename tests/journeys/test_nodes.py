"""Promise: one service on several nodes behind several gateways: any gateway will do; a node that dies loses no job.

Two nodes of a real Ray on this machine, each with its raylet, one model with a replica on each, two gateways.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest
import tiny
import torch
from gateway_process import whole_lines
from nnsight import CONFIG
from nnsight.intervention.backends.remote import AsyncRemoteBackend
from parity import Lab

T = TypeVar("T")
PROMPT = "The Eiffel Tower is in the city of"
DEADLINE = 180.0  # seconds
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Cluster:
    gateways: tuple[str, str]
    #: The raylet of the node that is not the head.
    second: psutil.Process


@contextmanager
def process(folder: Path, name: str, *command: str, **environ: str) -> Iterator[Path]:
    """A program, ended with all that it has started; yields the log that it prints into."""
    log = folder / f"{name}.log"
    with log.open("w") as output:
        started = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environ,
        )
    assert started.stdin is not None
    try:
        yield log
    finally:
        children = psutil.Process(started.pid).children(recursive=True) if started.poll() is None else []
        started.stdin.close()
        if name != "ray":  # which ends with its standard input
            started.terminate()
        try:
            started.wait(60)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        for child in psutil.wait_procs(children, timeout=30)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def until(found: Callable[[], T], what: str, folder: Path) -> T:
    """The first true value of ``found()``."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if value := found():
                return value
        time.sleep(0.1)
    logs = "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in folder.glob("*.log"))
    raise AssertionError(f"{what}: not within {DEADLINE} s\n{logs}")


def replicas(url: str) -> list[dict[str, Any]]:
    entries = httpx.get(f"{url}/status", timeout=60).json()["deployments"].values()
    return [entry for entry in entries if entry["application_state"] == "RUNNING"]


def first_line(log: Path, start: str) -> str:
    return next((line for line in whole_lines(log) if line.startswith(start)), "")


@pytest.fixture(scope="module")
def cluster(home: Path, tiny_models: Path, redis_url: str) -> Iterator[Cluster]:
    folder, token = home / "n", home / "n" / "token"  # short: sockets lie below
    folder.mkdir()
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    # As `interlace up` starts a Ray of its own: with a token, on loopback.
    environ = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with ExitStack() as stack:

        def run(name: str, *command: str) -> Path:
            return stack.enter_context(process(folder, name, *command, RAY_TMPDIR=str(folder), **environ))

        ray = run("ray", str(TESTS / "ray_nodes.py"))
        nodes = json.loads(until(lambda: first_line(ray, "{"), "Ray has two nodes", folder))
        file = folder / "interlace.yaml"
        configuration = {
            "ray": {"address": nodes["address"]},
            "redis": {"url": redis_url, "prefix": "nodes:"},
            "store": {"url": str(folder / "store")},
            "state_dir": str(folder / "state"),
            "models": [{"source": tiny.GPT2, "repo_id": tiny.GPT2, "threads": 1, "replicas": 2}],
            "lifetimes": {"lease": 4},
            "gateway": {"port": 0, "drain_seconds": 1},
        }
        file.write_text(json.dumps(configuration))
        run("workers", "-m", "interlace_workers", "--config", str(file))
        logs = [run(f"gateway-{number}", "-m", "interlace_server", "--config", str(file)) for number in range(2)]
        urls = [
            until(lambda log=log: first_line(log, "listening on"), "it listens", folder).split()[-1] for log in logs
        ]
        until(lambda: len(replicas(urls[1])) == 2, "both replicas are ready", folder)
        yield Cluster((urls[0], urls[1]), psutil.Process(nodes["raylet"]))


def serving(raylet: psutil.Process) -> list[psutil.Process]:
    """The replicas of a node."""
    found = []
    for one in raylet.children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "ray::ServeReplica" in " ".join(one.cmdline()):
                found.append(one)
    return found


def posted(client: Any, url: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> AsyncRemoteBackend:
    """A job that waits until so long after it was posted, also where it runs again."""
    monkeypatch.setattr(CONFIG.API, "HOST", url)
    backend = AsyncRemoteBackend(client.to_model_key(), env=client._remoteable_get_env())
    until = time.time() + seconds
    with client.trace(PROMPT, backend=backend):
        import time as clock

        print("it runs", flush=True)
        clock.sleep(max(0.0, until - clock.time()))
        logits = client.lm_head.output.detach().save()
    return backend


async def test_a_node_that_dies_loses_no_job(cluster: Cluster, models: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(serving(cluster.second)) == 1  # and the other is on the head
    client, local = models.client(tiny.GPT2), models.local(tiny.GPT2)
    with torch.no_grad(), local.trace(PROMPT):
        expected = local.lm_head.output.save()
    starts, running = [], asyncio.Event()

    async def followed(number: int, backend: AsyncRemoteBackend) -> Any:
        result = None
        async for update in backend:
            if isinstance(update, dict):
                result = update
                continue
            assert update.status.value != "ERROR", update.description
            if update.status.value == "LOG" and "it runs" in update.description:
                starts.append(number)
                if len(starts) == 2:
                    running.set()
        return result

    # The first two are run while the others wait, and for long enough to be met by what happens.
    backends = [
        posted(client, cluster.gateways[number % 2], seconds, monkeypatch)
        for number, seconds in enumerate((12.0, 12.0, 0.0, 0.0))
    ]
    following = [asyncio.create_task(followed(number, backend)) for number, backend in enumerate(backends)]
    async with asyncio.timeout(DEADLINE):
        await running.wait()
        for one in (*cluster.second.children(recursive=True), cluster.second):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        results = await asyncio.gather(*following)
    for result in results:
        torch.testing.assert_close(result["logits"], expected)
    assert sorted(set(starts)) == [0, 1, 2, 3]
    assert len(starts) == 5  # one of the first two ran again
