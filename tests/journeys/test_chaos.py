"""Promise: of a thousand accepted jobs a thousand reach exactly one end, with the right value, whatever dies."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monkey
import psutil
import pytest
import running
import tiny
from monkey import Monkey
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteBackend
from redis.exceptions import RedisError

from interlace.protocol.event import Ended, decode
from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.config_file import load
from interlace_state.keys import Keys
from interlace_state.store import open_state

CLIENTS = 8
JOBS = 1_000
#: Every part, and every stage; CHAOS=all in the environment takes every part at every stage, which takes longer.
STRIKES = [
    ("gateway", "received"),
    ("replica", "running"),
    ("redis", "queued"),
    ("zygote", "running"),
    ("gateway", "queued"),
    ("replica", "leased"),
    ("redis", "running"),
    ("placer", "running"),
    ("replica", "unacknowledged"),
    ("redis", "writing"),
    ("zygote", "writing"),
    ("gateway", "running"),
    ("redis", "leased"),
]
if os.environ.get("CHAOS") == "all":
    STRIKES = list(itertools.product(monkey.PARTS, monkey.STAGES))


CONFIGURATION = {
    "runtime": "process",
    "models": [{"source": tiny.GPT2, "repo_id": tiny.GPT2, "threads": 1}],
    "lifetimes": {"lease": 2},
    "gateway": {"port": 0, "drain_seconds": 1},
    # All eight clients are one tenant here, and ask as fast as they can.
    "limits": {"waiting_jobs": 2 * JOBS, "requests_per_minute": 1_000_000},
}


@pytest.fixture
def server(home: Path, tiny_models: Path) -> Iterator[running.Running]:
    """A server whose parts may be killed."""
    with running.interlace(home, CONFIGURATION, seconds=300) as server:
        yield server


def configuration_of(server: running.Running) -> Config:
    return load(server.state_dir / "run" / "config.json", {})


async def load_from_clients(server: running.Running) -> asyncio.subprocess.Process:
    script = Path(tiny.__file__).with_name("load.py")
    environ = {**os.environ, "NDIF_HOST": server.url}
    counts = [str(JOBS // CLIENTS)] * CLIENTS
    return await asyncio.create_subprocess_exec(
        sys.executable, str(script), *counts, env=environ, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )


@pytest.mark.timeout(1200 if len(STRIKES) > 13 else 900)
async def test_of_a_thousand_jobs_a_thousand_end_once_and_right(server: running.Running) -> None:
    clients = await load_from_clients(server)
    try:
        await strike_at(server, clients)
    finally:
        with contextlib.suppress(ProcessLookupError):  # they have ended, as they should
            os.killpg(clients.pid, signal.SIGKILL)


async def strike_at(server: running.Running, clients: asyncio.subprocess.Process) -> None:
    """Kill one part after the other while the clients' jobs go through, and look at how each job has ended."""
    said = asyncio.create_task(clients.communicate())
    config = configuration_of(server)
    keys = Keys(config.redis.prefix)
    async with open_state(config) as state:
        (hosted,) = await state.models.all()
        beast = Monkey(server, state, keys, hosted.card.key)
        await monkey.until(lambda: has_jobs(state, hosted.card.key), "no job came", 120.0)
        for number, (part, stage) in enumerate(STRIKES):
            # The last before half of them: jobs go on ending beside each strike, and none shall come after them all.
            await until_ended(beast, JOBS * number // (2 * len(STRIKES)), said)
            await beast.strike(part, stage)
            if number % 4 == 0:
                await beast.strike_sandbox()
        output, _ = await said
        verdicts = {line["job"]: line["wrong"] for line in map(json.loads, output.decode().splitlines())}
        wrong = {job_id: text for job_id, text in verdicts.items() if text}
        assert not wrong, (len(wrong), list(wrong.items())[:3], beast.struck, server.logs())
        assert len(verdicts) == JOBS // CLIENTS * CLIENTS
        ends = [await ends_of(state, keys, job_id) for job_id in verdicts]
        assert set(ends) == {1}
        assert await state.queue.length(hosted.card.key) == 0
    print(beast.struck)
    assert all(beast.struck[strike] for strike in STRIKES if strike[1] in ("queued", "running")), beast.struck


async def has_jobs(state: Any, key: ModelKey) -> bool:
    return bool(await state.queue.length(key))


async def until_ended(beast: Monkey, count: int, said: "asyncio.Task[Any]") -> None:
    """Wait until so many jobs have ended, or the clients have."""
    state, keys, key = beast.state, beast.keys, beast.model

    async def enough() -> bool:
        with contextlib.suppress(RedisError):
            return said.done() or await state.redis.zcard(keys.jobs) - await state.queue.length(key) >= count
        return False

    try:
        await monkey.until(enough, f"{count} jobs have not ended", 300.0)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{await beast.sight()}\n{beast.server.logs()}") from None


async def ends_of(state: Any, keys: Keys, job_id: str) -> int:
    """How many last events a job has."""
    entries = await state.redis.xrange(keys.events(job_id))
    return sum(isinstance(decode(fields[b"e"]), Ended) for _, fields in entries)


async def test_jobs_outlive_the_whole_server(
    home: Path, tiny_models: Path, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is killed with a job running and others waiting; the next `interlace up` of the folder ends them."""
    client = models.client(tiny.GPT2)

    def post(seconds: float) -> RemoteBackend:
        backend = RemoteBackend(client.to_model_key(), env=client._remoteable_get_env(), blocking=False)
        with client.trace("The Eiffel Tower", backend=backend):
            import time

            time.sleep(seconds)
            answer = (client.transformer.h[0].output.shape[0] + seconds).save()
        return backend

    with running.interlace(home, CONFIGURATION, seconds=300) as first:
        monkeypatch.setattr(CONFIG.API, "HOST", first.url)
        jobs = [post(seconds).job_id for seconds in (2.0, 0.0, 0.5)]
        await asyncio.sleep(1)
        parts = psutil.Process(first.process.pid).children(recursive=True)
        first.process.kill()
        psutil.wait_procs(parts, timeout=120)
    with running.interlace(home, CONFIGURATION, seconds=300, state_dir=first.state_dir) as second:
        for job_id, seconds in zip(jobs, (2.0, 0.0, 0.5), strict=True):
            polled = RemoteBackend(client.to_model_key(), host=second.url, blocking=False, job_id=job_id)
            result = None
            while result is None:
                await asyncio.sleep(0.1)
                result = polled()
            assert result["answer"] == 1 + seconds
