"""Promise: a worker that dies loses no job and no model: the job runs again, and the client's stream goes on.

On Ray: in `test_life.py`, which has a server there whose processes may be killed.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psutil
import pytest
import running
import struck
import tiny
import torch
from nnsight import CONFIG
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteError
from parity import Lab

import interlace
from interlace.protocol.event import Saved
from interlace_state.config_file import load
from interlace_state.store import open_state

PROMPT = "The Eiffel Tower is in the city of"
DEADLINE = 420.0  # seconds
#: A job waits until so long after it was posted: long enough to be met, also on a machine that others want, and
#: over by the time that another worker has it.
WAITS = 10.0  # seconds


@pytest.fixture(scope="module")
def own_server(home: Any, tiny_models: Any) -> Iterator[running.Running]:
    """A server whose processes may be killed."""
    entry = {"source": tiny.GPT2, "repo_id": tiny.GPT2, "threads": 1}
    gateway = {"port": 0, "drain_seconds": 1}
    configuration = {"runtime": "process", "models": [entry], "lifetimes": {"lease": 4}, "gateway": gateway}
    with running.interlace(home, configuration, seconds=400) as server:
        yield server


@pytest.fixture
def client(models: Lab, own_server: running.Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(CONFIG.API, "HOST", own_server.url)
    return models.client(tiny.GPT2)


def processes(server: running.Running, word: str) -> list[psutil.Process]:
    """The server's processes with a word in their command line, each before its children."""
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def logits_of(client: Any) -> torch.Tensor:
    with client.trace(PROMPT, remote=True):
        logits = client.lm_head.output.detach().save()
    return logits


def answered(client: Any) -> torch.Tensor:
    """The logits, as soon as there is somebody to compute them."""
    end = time.monotonic() + DEADLINE
    while True:
        try:
            return logits_of(client)
        except (RemoteError, OSError) as error:
            if time.monotonic() > end:
                raise AssertionError(f"no answer in {DEADLINE} s") from error
            time.sleep(0.2)


def posted(client: Any) -> AsyncRemoteBackend:
    """A job that waits a little, and then computes."""
    backend = AsyncRemoteBackend(client.to_model_key(), env=client._remoteable_get_env())
    until = time.time() + WAITS
    with client.trace(PROMPT, backend=backend):
        import time as clock

        print("it runs", flush=True)
        clock.sleep(max(0.0, until - clock.time()))
        logits = client.lm_head.output.detach().save()
    return backend


async def followed(backend: AsyncRemoteBackend) -> AsyncIterator[Any]:
    async with asyncio.timeout(DEADLINE):
        async for update in backend:
            yield update


@pytest.mark.parametrize("victim", ["interlace_workers.zygote", "interlace_workers.runtimes"])
async def test_a_job_runs_again(client: Any, own_server: running.Running, victim: str) -> None:
    expected = logits_of(client)
    process = processes(own_server, victim)[0]  # ahead of the job, which goes on while we look
    backend = posted(client)
    result = await struck.result_after(followed(backend), process)
    assert torch.equal(result["logits"], expected)


@pytest.mark.parametrize("victim", ["interlace_workers.zygote", "interlace_workers.runtimes", "interlace_server"])
def test_values_come_once_whatever_dies(client: Any, own_server: running.Running, victim: str) -> None:
    """A job that its worker lost streams again what its client has; a gateway that is lost is found again."""
    expected = logits_of(client)
    process = processes(own_server, victim)[0]
    with interlace.connect(own_server.url) as mine:
        backend = mine.on(client, blocking=False)
        until = time.time() + WAITS
        with client.trace(PROMPT, backend=backend):
            import time as clock

            interlace.stream("first", 1)
            clock.sleep(max(0.0, until - clock.time()))
            interlace.stream("second", 2)
            logits = client.lm_head.output.detach().save()
        names = []
        for name, _ in backend.job.values():
            names.append(name)
            if len(names) == 1:
                process.kill()
        assert names == ["first", "second"]
        assert torch.equal(backend.job.result(DEADLINE)["logits"], expected)
        replayed = [event.name for _, event in mine.events(backend.job.id) if isinstance(event, Saved)]
    assert replayed == (["first", "second"] if victim == "interlace_server" else ["first", "first", "second"])


async def test_a_replica_that_is_given_its_own_lapsed_job_runs_it_once_more(
    models: Lab, home: Any, tiny_models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is silent for longer than a lease while one of two slots is free."""
    entry = {"source": tiny.GPT2, "repo_id": tiny.GPT2, "threads": 1, "slots": 2}
    configuration = {
        "runtime": "process",
        "models": [entry],
        "lifetimes": {"lease": 5},
        "gateway": {"port": 0, "drain_seconds": 1},
    }
    with running.interlace(home, configuration, seconds=400) as server:
        monkeypatch.setattr(CONFIG.API, "HOST", server.url)
        client = models.client(tiny.GPT2)
        expected = logits_of(client)
        before = processes(server, "replica_process")[0].pid
        backend = posted(client)
        result = None
        async with open_state(load(server.state_dir / "run" / "config.json", {})) as state:
            async for update in followed(backend):
                if isinstance(update, dict):
                    result = update
                elif update.status.value == "LOG" and "it runs" in update.description:
                    (job,) = (await state.jobs.list(None, limit=1)).jobs
                    if job.attempts == 1:
                        await state.redis.execute_command("CLIENT", "PAUSE", 6000, "ALL")
            (job,) = (await state.jobs.list(None, limit=1)).jobs
        assert result is not None
        assert torch.equal(result["logits"], expected)
        assert job.attempts <= 2
        assert processes(server, "replica_process")[0].pid == before
        assert torch.equal(logits_of(client), expected)


def test_an_idle_zygote_dies(client: Any, own_server: running.Running) -> None:
    """It is loaded again at once: nobody has to ask first, and then to wait."""
    before = logits_of(client)
    (former,) = processes(own_server, "interlace_workers.runtimes")
    processes(own_server, "interlace_workers.zygote")[0].kill()

    def loads() -> bool:
        for replica in processes(own_server, "interlace_workers.runtimes"):
            with contextlib.suppress(psutil.NoSuchProcess):  # one of them has just ended
                children = replica.children() if replica != former else []
                if any("interlace_workers.zygote" in " ".join(child.cmdline()) for child in children):
                    return True
        return False

    end = time.monotonic() + DEADLINE
    while not loads():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert torch.equal(answered(client), before)


def test_the_placer_dies(client: Any, own_server: running.Running) -> None:
    before = logits_of(client)
    processes(own_server, "-m interlace_workers --config")[0].kill()
    assert torch.equal(answered(client), before)


def test_the_gateway_dies(client: Any, own_server: running.Running) -> None:
    before = logits_of(client)
    processes(own_server, "-m interlace_server")[0].kill()
    assert torch.equal(answered(client), before)


async def test_a_client_that_goes_away_stops_nothing(client: Any, own_server: running.Running) -> None:
    backend = posted(client)
    backend.close()
    assert torch.equal(await asyncio.to_thread(logits_of, client), await asyncio.to_thread(logits_of, client))


def test_nothing_is_left_after_the_command_is_killed(own_server: running.Running) -> None:
    """The last test of this file: there is no server after it."""
    children = psutil.Process(own_server.process.pid).children(recursive=True)
    assert len(children) >= 5
    own_server.process.kill()
    _, alive = psutil.wait_procs(children, timeout=120)
    assert alive == []
