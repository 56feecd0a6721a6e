"""A whole Interlace that has seen something of everything, and what it shows of that."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import nnsight
import running
import tiny
from gateway_process import until, whole_lines
from nnsight import CONFIG, TransformersModel
from nnsight.intervention.backends.remote import RemoteError
from prometheus_client.parser import text_string_to_metric_families

PROMPT = "The Eiffel Tower is in the city of"
_PATHS = ("/metrics", "/metrics/workers")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@contextmanager
def interlace(home: Path, **sections: Any) -> Iterator[running.Running]:
    """Host a tiny model; jobs end after eight seconds."""
    configuration = {
        "runtime": "process",
        "models": [{"source": tiny.GPT2, "repo_id": tiny.GPT2, "threads": 1}],
        "limits": {"wall_seconds": 8},
        "gateway": {"port": 0, "drain_seconds": 1},
        **sections,
    }
    with running.interlace(home, configuration, seconds=300) as server:
        CONFIG.API.HOST, before = server.url, CONFIG.API.HOST
        nnsight.register("tests")
        try:
            yield server
        finally:
            CONFIG.API.HOST = before


def reads(client: TransformersModel) -> None:
    """A job that completes."""
    with client.trace(PROMPT, remote=True):
        hidden = client.transformer.h[1].output.save()
    assert hidden.shape[-1] > 1


def raises(client: TransformersModel) -> str:
    """What a job says that raises."""
    return _failure(client, "raise ValueError('no')")


def runs_on(client: TransformersModel) -> str:
    """What is said of a job that does not end."""
    return _failure(client, "while True: pass")


def ends_itself(client: TransformersModel) -> str:
    """What is said of a job that ends its process."""
    return _failure(client, "import os; os._exit(3)")


def _failure(client: TransformersModel, code: str) -> str:
    try:
        with client.trace(PROMPT, remote=True):
            exec(code)
            client.lm_head.output.save()
    except RemoteError as error:
        return str(error)
    raise AssertionError("it has not failed")


def samples(url: str) -> Samples:
    """All that a gateway and its workers show now."""
    found = {}
    for path in _PATHS:
        answer = httpx.get(f"{url}{path}", timeout=60)
        assert answer.status_code == 200, answer.text
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def total(found: Samples, name: str, **labels: str) -> float:
    """The sum over all series of a name that carry these labels."""
    return sum(value for (one, has), value in found.items() if one == name and has >= set(labels.items()))


def settled(server: running.Running, jobs: int) -> Samples:
    """What is shown once the workers have told of so many jobs: they do with each heartbeat."""

    def shown() -> Samples | None:
        found = samples(server.url)
        return found if total(found, "interlace_jobs_total") >= jobs else None

    settled: Samples = until(shown, f"metrics of {jobs} jobs")
    return settled


def log_of(server: running.Running, part: str) -> list[dict[str, Any]]:
    """The lines of a part's log that are JSON objects."""
    lines = whole_lines(server.state_dir / "logs" / f"{part}.log")
    return [json.loads(line) for line in lines if line.startswith("{")]
