"""Promise: every way in which stock nnsight waits for a job, and everything that it asks a server, works."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import nnsight
import pytest
import running
import tiny
import torch
from nnsight import CONFIG
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteBackend, RemoteError
from parity import Lab

PROMPT = "The Eiffel Tower is in the city of"
DEADLINE = 120.0  # seconds


def polled(backend: RemoteBackend) -> Any:
    """The result of a job that is polled, within the deadline."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if (result := backend.poll()) is not None:
            return result
        time.sleep(0.05)
    raise AssertionError(f"no result within {DEADLINE} s; last status {backend.status}")


@pytest.fixture
def expected(lab: Lab) -> torch.Tensor:
    model = lab.local(tiny.GPT2)
    with model.trace(PROMPT):
        logits = model.lm_head.output.save()
    return logits


def backend_of(model: Any, kind: type[RemoteBackend] = AsyncRemoteBackend, **options: Any) -> Any:
    return kind(model.to_model_key(), env=model._remoteable_get_env(), **options)


async def test_awaited(lab: Lab, expected: torch.Tensor) -> None:
    client = lab.client(tiny.GPT2)
    backend = backend_of(client)
    with client.trace(PROMPT, backend=backend):
        logits = client.lm_head.output.save()
    result = await asyncio.wait_for(backend, DEADLINE)
    torch.testing.assert_close(result["logits"], expected)


async def test_iterated(lab: Lab, expected: torch.Tensor) -> None:
    client = lab.client(tiny.GPT2)
    backend = backend_of(client)
    with client.trace(PROMPT, backend=backend):
        print("one line")
        logits = client.lm_head.output.save()
    async with asyncio.timeout(DEADLINE):
        *updates, result = [update async for update in backend]
    words = [update.status.value for update in updates]
    waits = words.count("QUEUED")  # once, and again for as long as it waits
    assert words == ["QUEUED"] * max(1, waits) + ["DISPATCHED", "RUNNING", "LOG", "COMPLETED"]
    assert {update.id for update in updates} == {updates[0].id}
    torch.testing.assert_close(result["logits"], expected)


async def test_many_awaited_at_once(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)
    backends = []
    for number in range(6):
        backend = backend_of(client)
        with client.trace(PROMPT, backend=backend):
            client.transformer.h[0].output[:] = number
            first = client.transformer.h[0].output[0, 0, 0].save()
        backends.append(backend)
    results = await asyncio.wait_for(asyncio.gather(*backends), DEADLINE)
    assert [result["first"].item() for result in results] == [0, 1, 2, 3, 4, 5]


async def test_an_awaited_failure(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)
    backend = backend_of(client)
    with client.trace(PROMPT, backend=backend):
        raise ValueError("as I wish")
    with pytest.raises(RemoteError, match="as I wish"):
        await asyncio.wait_for(backend, DEADLINE)


async def test_an_iterated_failure(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)
    backend = backend_of(client)
    with client.trace(PROMPT, backend=backend):
        raise ValueError("as I wish")
    async with asyncio.timeout(DEADLINE):
        updates = [update async for update in backend]
    assert updates[-1].status.value == "ERROR"
    assert "as I wish" in updates[-1].description


def test_polled(lab: Lab, expected: torch.Tensor) -> None:
    client = lab.client(tiny.GPT2)
    with client.trace(PROMPT, remote=True, blocking=False) as tracer:
        logits = client.lm_head.output.save()
    backend = tracer.backend
    assert backend.status.value == "RECEIVED"
    assert len(backend.job_id) == 32
    result = polled(backend)
    torch.testing.assert_close(result["logits"], expected)
    assert backend.status.value == "COMPLETED"


def test_polled_again_by_somebody_who_knows_the_id(lab: Lab, expected: torch.Tensor) -> None:
    client = lab.client(tiny.GPT2)
    with client.trace(PROMPT, remote=True, blocking=False) as tracer:
        logits = client.lm_head.output.save()
    first = polled(tracer.backend)
    later = backend_of(client, RemoteBackend, blocking=False, job_id=tracer.backend.job_id)
    second = polled(later)
    assert torch.equal(first["logits"], second["logits"])


def test_a_polled_failure(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)
    with client.trace(PROMPT, remote=True, blocking=False) as tracer:
        raise KeyError("as I wish")
    with pytest.raises(RemoteError, match="as I wish"):
        polled(tracer.backend)


def test_a_job_that_nobody_knows(lab: Lab, on_ray: running.Running) -> None:
    backend = backend_of(lab.client(tiny.GPT2), RemoteBackend, blocking=False, job_id="0" * 32)
    assert backend.poll() is None
    assert httpx.get(f"{on_ray.url}/response/{'0' * 32}").status_code == 404


def test_what_a_success_cost(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)
    with client.trace(PROMPT, remote=True) as tracer:
        client.lm_head.output.save()
    meta = tracer.backend.meta
    assert 0 < meta["runtime"] < DEADLINE
    assert meta["max_memory_usage"] >= 0


def test_what_a_failure_cost(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)
    with pytest.raises(RemoteError), client.trace(PROMPT, remote=True) as tracer:
        raise ValueError("as I wish")
    assert tracer.backend.meta["runtime"] > 0


def test_a_block_that_saves_nothing(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)
    with client.trace(PROMPT, remote=True) as tracer:
        client.lm_head.output.sum()
    assert tracer.backend.meta["runtime"] > 0


def test_the_host_named_in_the_trace(lab: Lab, on_ray: running.Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:9")
    client = lab.client(tiny.GPT2)
    with client.trace(PROMPT, remote=on_ray.url):
        best = client.lm_head.output[0, -1].argmax().save()
    assert best.dtype == torch.int64


def test_an_api_key_changes_nothing(lab: Lab, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.API, "APIKEY", "any-key-at-all")
    client = lab.client(tiny.GPT2)
    with client.trace(PROMPT, remote=True):
        logits = client.lm_head.output.save()
    torch.testing.assert_close(logits, expected)


def test_status(lab: Lab) -> None:
    status = nnsight.status()
    assert {tiny.GPT2, tiny.LLAMA, tiny.NEOX, tiny.BERT} <= set(status.keys())
    entry = status[tiny.GPT2]
    assert (entry["state"], entry["level"], entry["task"]) == ("RUNNING", "HOT", "text-generation")
    assert status[tiny.BERT]["task"] == "fill-mask"
    assert "Up" in str(status)


def test_whoami_ping_and_connected(on_ray: running.Running) -> None:
    assert set(nnsight.whoami()) == {"email", "tags"}
    with httpx.Client(base_url=on_ray.url) as http:
        assert http.get("/ping").json() == "pong"
        assert http.get("/connected").json() == {"status": "connected"}
        assert http.head("/connected").status_code == 200


def test_the_same_packages_on_both_sides(on_ray: running.Running) -> None:
    comparison = nnsight.compare()
    assert comparison.python_matches
    assert comparison.critical_mismatches == {}
    assert {"torch", "nnsight", "transformers"} <= set(comparison.packages)


async def lines_of(trace: Callable[[Any], None], client: Any) -> list[str]:
    """What a traced block printed, line by line."""
    backend = backend_of(client)
    trace(backend)
    async with asyncio.timeout(DEADLINE):
        updates = [update async for update in backend]
    return [update.description for update in updates if getattr(update, "status", None) == "LOG"]


async def test_what_the_block_prints(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace(backend: Any) -> None:
        with client.trace(PROMPT, backend=backend):
            print("tokens:", client.transformer.h[0].output.shape[1])
            print("two\nlines, and a Zürich ✓")
            for layer in client.transformer.h:
                print(layer.path, flush=True)
            print("no end of line", end="")

    lines = await lines_of(trace, client)
    paths = [f"model.transformer.h.{index}" for index in range(4)]
    tokens = len(client.tokenizer(PROMPT)["input_ids"])
    assert lines == [f"tokens: {tokens}", "two", "lines, and a Zürich ✓", *paths, "no end of line"]


async def test_what_goes_to_standard_error_and_below_python(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace(backend: Any) -> None:
        with client.trace(PROMPT, backend=backend):
            import os
            import sys
            import warnings

            print("an error line", file=sys.stderr)
            warnings.warn("careful", stacklevel=1)
            sys.stdout.flush()
            os.write(1, b"from the descriptor\n")

    lines = await lines_of(trace, client)
    assert "an error line" in lines
    assert any("careful" in line for line in lines)
    assert "from the descriptor" in lines


def test_the_client_shows_what_the_block_prints(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", True)
    client = lab.client(tiny.GPT2)
    with client.trace(PROMPT, remote=True):
        print("hello from the block")
    shown = capsys.readouterr()
    assert "hello from the block" in shown.out + shown.err
    assert "COMPLETED" in shown.out + shown.err


async def test_prints_of_a_block_that_fails_come_first(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)
    backend = backend_of(client)
    with client.trace(PROMPT, backend=backend):
        for number in range(50):
            print(number)
        raise ValueError("after fifty lines")
    async with asyncio.timeout(DEADLINE):
        updates = [update async for update in backend]
    assert [update.description for update in updates if update.status == "LOG"] == [str(n) for n in range(50)]
    assert updates[-1].status.value == "ERROR"
