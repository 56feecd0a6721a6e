"""Two labs share one server: each with its own key, jobs and results, through stock nnsight."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nnsight
import pytest
import running
import tiny
import torch
from gateway_keys import key_for
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError


@pytest.fixture(scope="module")
def shared(home: Path, tiny_models: Path) -> Iterator[running.Running]:
    configuration = {
        "runtime": "process",
        "isolation": "required",
        "models": [{"source": tiny.GPT2, "task": tiny.task_of(tiny.GPT2), "threads": 1}],
        "tenants": {"lab-b": {"wall_seconds": 1}},
        "gateway": {"port": 0, "drain_seconds": 1},
    }
    with running.interlace(home, configuration, seconds=300) as server:
        yield server


def test_two_labs(shared: running.Running, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, local = models.client(tiny.GPT2), models.local(tiny.GPT2)
    monkeypatch.setattr(CONFIG.API, "HOST", shared.url)
    ours, theirs = key_for(shared, "lab-a"), key_for(shared, "lab-b")
    with pytest.raises(Exception, match="API key"):
        with client.trace("the cat sat", remote=True):
            hidden = client.transformer.h[0].output.save()
    monkeypatch.setattr(CONFIG.API, "APIKEY", ours)
    assert nnsight.whoami()["email"] == "lab-a"
    with client.trace("the cat sat", remote=True):
        hidden = client.transformer.h[0].output.save()
    with local.trace("the cat sat"):
        expected = local.transformer.h[0].output.save()
    assert torch.equal(hidden, expected)
    with client.trace("the cat sat", remote=True, blocking=False) as tracer:
        hidden = client.transformer.h[0].output.save()
    monkeypatch.setattr(CONFIG.API, "APIKEY", theirs)
    thief = RemoteBackend(client.to_model_key(), blocking=False, job_id=tracer.backend.job_id)
    assert [thief() for _ in range(3)] == [None] * 3  # as of a job that never was
    assert "limits.wall_seconds" in failure(client)


def failure(client: Any) -> str:
    try:
        with client.trace("the cat sat", remote=True):
            while True:
                pass
    except RemoteError as error:
        return str(error)
    raise AssertionError("it did not fail")
