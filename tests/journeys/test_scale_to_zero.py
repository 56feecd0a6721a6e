"""Promise: a model that nobody uses takes no memory, and the next job starts it again; no job is lost on the way."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import httpx
import nnsight
import psutil
import pytest
import running
import tiny
import torch
from nnsight import CONFIG
from nnsight.intervention.backends.remote import AsyncRemoteBackend
from parity import Lab

PROMPT = "The Eiffel Tower is in the city of"
DEADLINE = 420.0  # seconds: to start anything on Ray takes minutes on a busy machine
IDLE = 2.0  # seconds


@pytest.fixture(scope="module", params=["process", "ray"])
def server(request: pytest.FixtureRequest, home: Any, tiny_models: Any) -> Iterator[running.Running]:
    """One model, at most two replicas, one for each job; none at first."""
    autoscale = {"least": 0, "most": 2, "jobs_per_replica": 1, "idle_seconds": IDLE}
    configuration = {
        "runtime": request.param,
        "models": [{"source": tiny.GPT2, "repo_id": tiny.GPT2, "threads": 1, "autoscale": autoscale}],
        "gateway": {"port": 0, "drain_seconds": 1},
    }
    with running.interlace(home, configuration, seconds=400) as one:
        yield one


@pytest.fixture
def client(models: Lab, server: running.Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    return models.client(tiny.GPT2)


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {DEADLINE} s"
        time.sleep(0.1)


def zygotes(server: running.Running) -> int:
    """Processes that hold the weights, their children not counted."""
    found = 0
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            words, parent = " ".join(process.cmdline()), process.parent()
            found += "interlace_workers.zygote" in words and (
                parent is None or "interlace_workers.zygote" not in " ".join(parent.cmdline())
            )
        except psutil.NoSuchProcess:
            continue
    return found


def replicas(server: running.Running) -> int:
    deployments = httpx.get(f"{server.url}/status", timeout=60).json()["deployments"].values()
    return sum(one["application_state"] == "RUNNING" for one in deployments)


def is_cold(server: running.Running) -> bool:
    deployments = httpx.get(f"{server.url}/status", timeout=60).json()["deployments"].values()
    return all(one["deployment_level"] == "COLD" for one in deployments) and zygotes(server) == 0


def posted(client: Any, seconds: float) -> AsyncRemoteBackend:
    """A job that takes so long."""
    backend = AsyncRemoteBackend(client.to_model_key(), env=client._remoteable_get_env())
    with client.trace(PROMPT, backend=backend):
        import time

        print("it runs", flush=True)
        time.sleep(seconds)
        logits = client.lm_head.output.detach().save()
    return backend


async def followed(backend: AsyncRemoteBackend, meanwhile: Callable[[], None] = lambda: None) -> tuple[list[str], Any]:
    """The statuses of a job, and its result; something is done when it says that it runs."""
    statuses, result = [], None
    async with asyncio.timeout(DEADLINE):
        async for update in backend:
            if isinstance(update, dict):
                result = update
            else:
                statuses.append(update.status.value)
                if statuses[-1] == "LOG":
                    await asyncio.to_thread(meanwhile)
                assert statuses[-1] != "ERROR", update.description
    return statuses, result


async def test_an_idle_model_is_stopped_and_the_next_job_starts_it(
    client: Any, models: Lab, server: running.Running
) -> None:
    until(lambda: is_cold(server), "none runs at first")
    readiness = httpx.get(f"{server.url}/readyz", timeout=60)
    assert (readiness.status_code, readiness.json()["detail"]) == (
        200,
        f"Scaled to zero: {tiny.GPT2} (text-generation).",
    )
    assert tiny.GPT2 not in nnsight.status()
    file = server.state_dir / "interlace.yaml"
    command = [sys.executable, "-m", "interlace_deploy", "status", "--config", str(file)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    assert "scaled to zero" in shown
    assert shown.splitlines()[0].endswith(": ready")

    # Longer than a model may be idle: who has a job is not idle.
    hosted: list[str] = []
    backend = posted(client, 2 * IDLE)
    statuses, result = await followed(backend, lambda: hosted.append(nnsight.status()[tiny.GPT2]["state"]))
    told = [one for one, _ in groupby(statuses) if one != "LOG"]  # it is told what its model does meanwhile
    assert told == ["DEPLOYING", "DISPATCHED", "RUNNING", "COMPLETED"]
    assert statuses.count("LOG") == 1
    local = models.local(tiny.GPT2)
    with torch.no_grad(), local.trace(PROMPT):
        expected = local.lm_head.output.save()
    torch.testing.assert_close(result["logits"], expected)
    assert hosted == ["RUNNING"]
    until(lambda: is_cold(server), "it is stopped when it is idle")


async def test_two_jobs_get_two_replicas(client: Any, server: running.Running) -> None:
    jobs = [asyncio.create_task(followed(posted(client, 3.0))) for _ in range(4)]
    seen = weights = 0
    while waiting := sum(not job.done() for job in jobs):
        if seen < 2 and waiting < 4 and len(jobs) < 40:  # to start the second one takes long
            jobs.append(asyncio.create_task(followed(posted(client, 3.0))))
        weights = max(weights, await asyncio.to_thread(zygotes, server))
        seen = max(seen, await asyncio.to_thread(replicas, server))
        await asyncio.sleep(0.1)
    for job in jobs:
        statuses, result = await job
        assert statuses.count("LOG") == 1  # it ran once
        assert result["logits"].shape[0] == 1
    assert seen == 2
    assert weights == 1  # which both of them share
