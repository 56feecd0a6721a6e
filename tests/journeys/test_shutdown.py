"""Promise: a server that shuts down says so to everybody who waits, and nobody hangs."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import running
import tiny
from nnsight import CONFIG
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteError
from parity import Lab

PROMPT = "The Eiffel Tower is in the city of"
DEADLINE = 120.0  # seconds


async def test_a_waiting_client_hears_of_it(
    models: Lab, home: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"source": tiny.GPT2, "repo_id": tiny.GPT2, "threads": 1}
    configuration = {"runtime": "process", "models": [entry], "gateway": {"port": 0, "drain_seconds": 5}}
    with running.interlace(home, configuration, seconds=400) as server:
        monkeypatch.setattr(CONFIG.API, "HOST", server.url)
        client = models.client(tiny.GPT2)
        backend = AsyncRemoteBackend(client.to_model_key(), env=client._remoteable_get_env())
        with client.trace(PROMPT, backend=backend):
            import time as clock

            print("it runs", flush=True)
            clock.sleep(120)
        said: list[Any] = []
        async with asyncio.timeout(DEADLINE):
            async for update in backend:
                said.append(update)
                if update.status.value == "LOG":
                    server.interrupt()
                    refusal = await asyncio.to_thread(refused, client)
                    assert "shutting down" in refusal
        assert said[-1].status.value == "ERROR"
        assert "shutting down" in said[-1].description
        await asyncio.to_thread(server.process.wait, DEADLINE)
    assert server.process.returncode == 0


def refused(client: Any) -> str:
    """How a trace is refused that comes while the server drains."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            with client.trace(PROMPT, remote=True, blocking=False):
                client.lm_head.output.save()
        except RemoteError as error:
            return str(error)
        time.sleep(0.01)
    return "it still takes jobs"
