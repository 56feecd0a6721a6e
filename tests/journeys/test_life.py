"""Promise: models come and go by request, by command and for want of memory, and no job is lost by it."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import hub_server
import psutil
import pytest
import running
import struck
import subprocess_client
import tiny
import torch
from nnsight import CONFIG
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteBackend, RemoteError
from parity import Lab

import interlace
from interlace.protocol.hosting import ModelView, Phase

PROMPT = "The Eiffel Tower is in the city of"
DEADLINE = 420.0  # seconds: to start anything on Ray takes minutes on a busy machine
#: Room for two of the tiny models: each is counted with 480 MiB and its weights.
LIMIT = 1000 << 20
SCRIPT = """
from nnsight import TransformersModel

model = TransformersModel("lab/Tiny")
with model.trace("The Eiffel Tower is in the city of", remote=True):
    logits = model.lm_head.output.detach().save()
print(f"{logits.double().sum().item():.4f}")
"""


@pytest.fixture(scope="module")
def server(home: Path, tiny_models: Path) -> Iterator[running.Running]:
    """One model is configured; others may come on demand, out of the cache and from a hub."""
    configuration = {
        "runtime": "process",
        "models": [{"source": tiny.GPT2, "repo_id": tiny.GPT2, "threads": 1}],
        "on_demand": {"allow": ["interlace-tests/*", "lab/Tiny"]},
        "memory": {"limit_bytes": LIMIT},
        "gateway": {"port": 0, "drain_seconds": 2},
    }
    files = {path.name: path.read_bytes() for path in tiny_models.iterdir()}
    with (
        hub_server.running(files) as environ,
        running.interlace(home, configuration, seconds=400, environ=environ) as one,
    ):
        yield one


@pytest.fixture
def on(server: running.Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[interlace.Client]:
    """Stock clients talk to the server, and so does ours."""
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    with interlace.connect(server.url) as client:
        yield client


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {DEADLINE} s"
        time.sleep(0.1)


def phases(on: interlace.Client) -> dict[str, Phase]:
    return {model.model: model.phase for model in on.models()}


def lived(on: interlace.Client, name: str) -> list[Phase]:
    """The phases of a model's history."""
    return [moment.phase for moment in on.model(name).history]


def in_memory(on: interlace.Client) -> set[str]:
    return {model.model for model in on.models() if model.replicas}


def posted(client: Any, seconds: float, until: float = 0.0) -> AsyncRemoteBackend:
    """A job that takes so long, and does not end before that time."""
    backend = AsyncRemoteBackend(client.to_model_key(), env=client._remoteable_get_env())
    with client.trace(PROMPT, backend=backend):
        import time as clock

        print("it runs", flush=True)
        clock.sleep(max(seconds, until - clock.time()))
        logits = client.output.logits.detach().save()
    return backend


async def followed(backend: AsyncRemoteBackend) -> tuple[list[Any], Any]:
    """The statuses of a job, and its result."""
    updates, result = [], None
    async with asyncio.timeout(DEADLINE):
        async for update in backend:
            if isinstance(update, dict):
                result = update
            else:
                updates.append(update)
                assert update.status.value != "ERROR", update.description
    return updates, result


def logits_of(model: Any, **remote: Any) -> torch.Tensor:
    with torch.no_grad(), model.trace(PROMPT, **remote):
        logits = model.output.logits.save()
    return logits


def command(server: running.Running, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "interlace_deploy", *words, "--config", str(server.state_dir / "interlace.yaml")],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def followed_until(server: running.Running, word: str) -> str:
    """What `interlace models --follow` prints, up to a line with a word."""
    command = [sys.executable, "-m", "interlace_deploy", "models", "--follow", "--url", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        while not lines or word not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], "it has ended"
        process.kill()
    return "".join(lines)


async def test_a_request_brings_a_model_and_its_client_sees_how(
    on: interlace.Client, models: Lab, server: running.Running
) -> None:
    assert tiny.NEOX not in phases(on)
    updates, result = await followed(posted(models.client(tiny.NEOX), 0))
    statuses = [update.status.value for update in updates if update.status.value != "LOG"]
    assert statuses[0] == "DEPLOYING"
    assert statuses[-3:] == ["DISPATCHED", "RUNNING", "COMPLETED"]
    assert set(statuses[:-3]) == {"DEPLOYING"}
    assert any("weights" in update.description for update in updates if update.status.value == "DEPLOYING")
    torch.testing.assert_close(result["logits"], logits_of(models.local(tiny.NEOX)))
    await asyncio.to_thread(until, lambda: Phase.READY in lived(on, tiny.NEOX), "it is ready")
    view = on.model(tiny.NEOX)
    assert (view.origin, view.phase, view.idle_seconds) == ("on_demand", "ready", 1800)
    order = lived(on, tiny.NEOX)
    assert order.index(Phase.LOADING) < order.index(Phase.READY)
    deployment = next(
        one for one in httpx.get(f"{server.url}/status").json()["deployments"].values() if one["repo_id"] == tiny.NEOX
    )
    assert (deployment["application_state"], deployment["phase"]) == ("RUNNING", "ready")


def test_one_that_may_not_come_is_refused_with_the_list(on: interlace.Client, models: Lab) -> None:
    gpt2 = models.client(tiny.GPT2)
    key = gpt2.to_model_key().replace(tiny.GPT2, "somebody/else")
    backend = RemoteBackend(key, env=gpt2._remoteable_get_env())

    def ask() -> None:
        with gpt2.trace(PROMPT, backend=backend):
            gpt2.output.save()

    with pytest.raises(RemoteError, match=r"somebody/else.*interlace-tests/\*, lab/Tiny"):
        ask()
    assert "somebody/else" not in phases(on)


def test_a_client_without_a_hub_gets_its_tokenizer_from_us_before_the_weights_are_here(
    on: interlace.Client, server: running.Running, tiny_models: Path, tmp_path: Path, models: Lab
) -> None:
    small = httpx.get(f"{server.url}/hf/lab/Tiny/resolve/main/config.json")
    assert small.json()["n_layer"] == 4
    until(lambda: phases(on).get("lab/Tiny") is Phase.EVICTED, "it is known")
    assert "model.safetensors" not in hub_server.Hub.fetched
    script = tmp_path / "client.py"
    script.write_text(SCRIPT)
    closed = "http://127.0.0.1:9"
    environ = {"HF_HOME": str(tmp_path), "http_proxy": closed, "https_proxy": closed, "no_proxy": "127.0.0.1"}
    said = subprocess_client.run(server.url, script, environ=environ).split()[-1]
    assert "model.safetensors" in hub_server.Hub.fetched
    assert Phase.DOWNLOADING in lived(on, "lab/Tiny")
    local = models.local(str(tiny_models), tokenizer=models.local(tiny.GPT2).tokenizer)
    assert float(said) == pytest.approx(logits_of(local).double().sum().item(), rel=1e-4)
    assert httpx.get(f"{server.url}/hf/lab/Other/resolve/main/config.json").status_code == 404


def test_who_was_not_used_for_longest_leaves_for_another(on: interlace.Client, models: Lab) -> None:
    for name in (tiny.GPT2, tiny.NEOX):
        logits_of(models.client(name), remote=True)
    until(lambda: in_memory(on) == {tiny.GPT2, tiny.NEOX}, "both are there, and no other")
    logits_of(models.client(tiny.LLAMA), remote=True)
    until(lambda: in_memory(on) == {tiny.NEOX, tiny.LLAMA}, "the one that was not used for longest has left")
    until(lambda: phases(on)[tiny.GPT2] is Phase.EVICTED, "it says so")
    on.scale(tiny.NEOX, pin=True)
    try:
        back = logits_of(models.client(tiny.GPT2), remote=True)
        # The other one is pinned, and was used longer ago.
        until(lambda: in_memory(on) == {tiny.NEOX, tiny.GPT2}, "it is back, for the one that is not pinned")
        torch.testing.assert_close(back, logits_of(models.local(tiny.GPT2)))
    finally:
        on.scale(tiny.NEOX, pin=False)


async def test_evicted_under_load_and_back_no_job_is_lost(on: interlace.Client, models: Lab) -> None:
    client = models.client(tiny.GPT2)
    await asyncio.to_thread(on.pause, tiny.GPT2)  # until all of them wait
    jobs = [asyncio.create_task(followed(posted(client, 0.5))) for _ in range(8)]
    await asyncio.to_thread(on.resume, tiny.GPT2)
    await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE)
    before = len([job for job in jobs if job.done()])
    view = await asyncio.to_thread(on.evict, tiny.GPT2)
    assert view.model == tiny.GPT2
    ended = [await job for job in jobs]
    assert 0 < before < len(jobs)
    expected = logits_of(models.local(tiny.GPT2))
    for updates, result in ended:
        torch.testing.assert_close(result["logits"], expected)
        assert [update.status.value for update in updates].count("COMPLETED") == 1
    history = await asyncio.to_thread(lived, on, tiny.GPT2)
    gone = len(history) - 1 - [*reversed(history)].index(Phase.LOADING)
    assert history[gone - 1] in (Phase.QUEUED, Phase.EVICTED)


def test_commands(on: interlace.Client, server: running.Running, models: Lab) -> None:
    deployed = command(server, "deploy", tiny.LLAMA, "--dtype", "bfloat16", "--replicas", "0:1", "--idle", "1h")
    assert deployed.returncode == 0, deployed.stderr
    assert deployed.stdout.strip() == tiny.LLAMA
    # It may be in memory as it was hosted before: its replica leaves first.
    until(lambda: on.model(tiny.LLAMA).dtype == "bfloat16", "it is another")
    view = on.model(tiny.LLAMA)
    assert (view.origin, view.dtype, view.least, view.most, view.idle_seconds) == ("deployed", "bfloat16", 0, 1, 3600)
    assert logits_of(models.client(tiny.LLAMA), remote=True).dtype is torch.bfloat16
    scaled = command(server, "scale", tiny.LLAMA, "--replicas", "1", "--idle", "1")
    assert scaled.stdout.strip() == f"{tiny.LLAMA}: 1 replicas, leaves the memory after 1 s without a job"
    until(lambda: phases(on)[tiny.LLAMA] is Phase.EVICTED and tiny.LLAMA not in in_memory(on), "it is idle")
    listed = {one["model"]: one for one in json.loads(command(server, "models", "--json").stdout)}
    assert listed[tiny.LLAMA]["phase"] == "evicted"
    shown = command(server, "models").stdout
    assert "evicted" in next(line for line in shown.splitlines() if line.startswith(tiny.LLAMA))
    evicted = command(server, "evict", tiny.LLAMA)
    assert evicted.stdout.strip() == f"{tiny.LLAMA} leaves the memory; the next job brings it back."
    forgotten = command(server, "evict", "--forget", tiny.LLAMA)
    assert forgotten.stdout.strip() == f"{tiny.LLAMA} is hosted no longer."
    until(lambda: tiny.LLAMA not in phases(on), "it is gone")
    told = [
        event.moment and event.moment.phase for _, event in on.model_events(follow=False) if event.slug == view.slug
    ]
    steps = [Phase.LOADING, Phase.READY, Phase.EVICTED, None]
    assert [phase for phase, _ in groupby(phase for phase in told if phase in steps)][-4:] == steps
    assert f"{tiny.LLAMA}  is hosted no longer" in followed_until(server, "no longer")
    kept = command(server, "evict", "--forget", tiny.GPT2)
    assert (kept.returncode, "is in the configuration file" in kept.stderr) == (1, True)
    impossible = command(server, "deploy", tiny.LLAMA, "--quantization", "fp8")
    assert impossible.returncode == 1
    assert "needs a GPU" in impossible.stderr
    lines = (server.state_dir / "audit.jsonl").read_text().splitlines()
    actions = [one["action"] for one in map(json.loads, lines)]
    assert {"model deployed", "model scaled", "model forgotten", "model evicted", "model"} <= set(actions)


def process_of(server: running.Running, words: str) -> psutil.Process | None:
    """The one with these words in its command line; None while there is none."""
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if words in " ".join(process.cmdline()):
                return process
    return None


def placer(server: running.Running) -> psutil.Process | None:
    return process_of(server, "-m interlace_workers --config")


async def test_a_placer_that_dies_finds_all_of_it_again(
    on: interlace.Client, models: Lab, server: running.Running
) -> None:
    await asyncio.to_thread(on.deploy, tiny.NEOX, idle_seconds=900, pin=True)
    await asyncio.to_thread(on.scale, tiny.GPT2, idle_seconds=700)
    client = models.client(tiny.NEOX)
    await followed(posted(client, 0))
    jobs = [asyncio.create_task(followed(posted(client, 1.0))) for _ in range(3)]
    await asyncio.sleep(1.5)
    former = await asyncio.to_thread(placer, server)
    assert former is not None
    former.kill()
    expected = logits_of(models.local(tiny.NEOX))
    for updates, result in [await job for job in jobs]:
        assert [update.status.value for update in updates].count("COMPLETED") == 1
        torch.testing.assert_close(result["logits"], expected)
    views: dict[str, ModelView] = {one.model: one for one in await asyncio.to_thread(on.models)}
    assert (views[tiny.NEOX].origin, views[tiny.NEOX].pin, views[tiny.NEOX].idle_seconds) == ("deployed", True, 900)
    assert (views[tiny.GPT2].origin, views[tiny.GPT2].idle_seconds) == ("configured", 700)
    await asyncio.to_thread(until, lambda: placer(server) not in (None, former), "there is another placer")


@pytest.fixture(scope="module")
def ray(home: Path, tiny_models: Path) -> Iterator[running.Running]:
    """Nothing is configured; a model comes on demand."""
    configuration = {
        "runtime": "ray",
        "on_demand": {"allow": [tiny.GPT2]},
        "lifetimes": {"lease": 6},
        "gateway": {"port": 0, "drain_seconds": 1},
    }
    with running.interlace(home, configuration, seconds=400) as one:
        yield one


async def test_on_ray_a_job_whose_worker_dies_runs_again(
    models: Lab, ray: running.Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONFIG.API, "HOST", ray.url)
    client = models.client(tiny.GPT2)
    expected = await asyncio.to_thread(logits_of, client, remote=True)
    replica = await asyncio.to_thread(process_of, ray, "ray::ServeReplica")
    assert replica is not None
    backend = posted(client, 0, until=time.time() + 10)  # long enough to be met; it runs again without a wait
    async with asyncio.timeout(DEADLINE):
        result = await struck.result_after(backend, replica)
    assert torch.equal(result["logits"], expected)


def test_on_ray_a_model_is_deployed_evicted_and_changed(
    models: Lab, ray: running.Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONFIG.API, "HOST", ray.url)
    client, local = models.client(tiny.GPT2), models.local(tiny.GPT2)
    with interlace.connect(ray.url) as on:
        expected = logits_of(local)
        torch.testing.assert_close(logits_of(client, remote=True), expected)  # on demand
        on.evict(tiny.GPT2)
        until(lambda: not in_memory(on), "it leaves the memory")
        torch.testing.assert_close(logits_of(client, remote=True), expected)
        on.deploy(tiny.GPT2, dtype="bfloat16")
        until(lambda: on.model(tiny.GPT2).dtype == "bfloat16" and phases(on)[tiny.GPT2] is Phase.READY, "it is another")
        assert logits_of(client, remote=True).dtype is torch.bfloat16
        on.evict(tiny.GPT2, forget=True)
        until(lambda: tiny.GPT2 not in phases(on), "it is hosted no longer")


def test_on_ray_a_model_that_no_machine_has_gpus_for_says_so(ray: running.Running) -> None:
    """Ray keeps its replica pending. It was never run where there are GPUs; no machine has 64."""
    with interlace.connect(ray.url) as on:
        on.deploy(tiny.NEOX, executor="resident", trusted=["local"], device="cuda", gpus=64)
        until(lambda: "GPU" in on.model(tiny.NEOX).text, "it says what it waits for")
        waits = on.model(tiny.NEOX)
        assert (waits.phase, waits.replicas) == (Phase.QUEUED, 0)
        assert waits.text.startswith("A replica waits for 64 GPUs: the cluster has ")
        on.evict(tiny.NEOX, forget=True)
        until(lambda: tiny.NEOX not in phases(on), "it is hosted no longer")
