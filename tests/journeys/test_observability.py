"""Promise: what becomes of a job can be seen from outside: in metrics, in logs and in a trace."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import observed
import otlp_collector
import pytest
import running
import tiny
from gateway_process import until
from observed import total
from otlp_collector import Collector, Seen
from parity import Lab

STEPS = ["fork", "deserialize", "forward", "serialize", "transfer"]
SPANS = ["submit", "queue wait", "job", *STEPS]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with otlp_collector.running() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(home: Path, tiny_models: Path, collector: Collector) -> Iterator[running.Running]:
    with observed.interlace(home, telemetry={"endpoint": collector.url}) as server:
        yield server


def test_jobs_are_counted_and_timed(server: running.Running, models: Lab) -> None:
    client = models.client(tiny.GPT2)
    before = observed.samples(server.url)
    observed.reads(client)
    observed.reads(client)
    assert "ValueError: no" in observed.raises(client)
    assert "exit code 3" in observed.ends_itself(client)
    assert "limits.wall_seconds" in observed.runs_on(client)
    found = observed.settled(server, int(total(before, "interlace_jobs_total")) + 5)

    def grown(name: str, **labels: str) -> float:
        return total(found, name, **labels) - total(before, name, **labels)

    outcomes = {"completed": 2, "raised": 1, "died": 1, "wall_seconds": 1, "taken_away": 0, "lost": 0}
    assert {name: grown("interlace_jobs_total", outcome=name) for name in outcomes} == outcomes
    kills = {"finished": 2, "raised": 1, "died": 1, "wall_seconds": 1, "memory_bytes": 0}
    assert {name: grown("interlace_sandbox_kills_total", reason=name) for name in kills} == kills
    assert grown("interlace_sandbox_starts_total") >= 4
    for name in ("wait", "execute"):
        assert grown(f"interlace_job_{name}_seconds_count") == 5
    assert 8 <= grown("interlace_job_execute_seconds_sum") < 60
    assert grown("interlace_job_transfer_seconds_count") == 2
    assert grown("interlace_results_stored_total") == 2
    assert grown("interlace_result_stored_bytes_total") > 1000
    # The steps of a sandbox lie inside of what its parent has measured.
    steps = {name: grown("interlace_job_step_seconds_sum", step=name) for name in STEPS}
    assert all(grown("interlace_job_step_seconds_count", step=name) == 2 for name in STEPS[1:])
    assert all(seconds > 0 for seconds in steps.values())
    assert steps["deserialize"] + steps["forward"] + steps["serialize"] < grown("interlace_job_execute_seconds_sum")
    assert total(found, "interlace_weights_loaded_bytes") > 1000
    assert total(found, "interlace_weights_resident_bytes") > 1 << 20
    assert total(found, "interlace_replica_ready") == 1
    assert total(found, "interlace_jobs_accepted_total") == total(found, "interlace_jobs_total")
    workers = {labels for name, labels in found if name == "interlace_jobs_total"}
    assert {dict(labels)["model"] for labels in workers} == {f"{tiny.GPT2} (text-generation)"}


def test_one_trace_shows_the_whole_way(server: running.Running, models: Lab, collector: Collector) -> None:
    observed.reads(models.client(tiny.GPT2))
    job_id = _last(server)["job"]
    until(lambda: len(collector.of_job(job_id)) >= len(SPANS), "the trace")
    spans = collector.of_job(job_id)
    assert sorted(one.name for one in spans) == sorted(SPANS)
    by_name: dict[str, Seen] = {one.name: one for one in spans}
    assert by_name["submit"].parent == ""
    assert {by_name[name].parent for name in ("queue wait", "job")} == {by_name["submit"].id}
    assert {by_name[name].parent for name in STEPS} == {by_name["job"].id}
    assert {one.name: one.service for one in spans} == {
        name: "interlace-gateway" if name == "submit" else "interlace-worker" for name in SPANS
    }
    times = [by_name[name].span for name in ("queue wait", *STEPS)]
    assert all(one.start_time_unix_nano <= one.end_time_unix_nano for one in times)
    assert [one.start_time_unix_nano for one in times] == sorted(one.start_time_unix_nano for one in times)
    assert all(by_name["job"].span.end_time_unix_nano >= one.end_time_unix_nano for one in times)
    assert by_name["job"].span.status.code != 2


def test_a_failure_is_seen_in_its_trace(server: running.Running, models: Lab, collector: Collector) -> None:
    assert "ValueError: no" in observed.raises(models.client(tiny.GPT2))
    job_id = _last(server)["job"]
    (job,) = until(lambda: [one for one in collector.of_job(job_id) if one.name == "job"], "the job's span")
    assert (job.span.status.code, job.span.status.message) == (2, "raised")
    assert job.attributes["interlace.outcome"] == "raised"


def test_a_request_is_followed_through_all_logs(server: running.Running, models: Lab) -> None:
    observed.reads(models.client(tiny.GPT2))
    accepted = _last(server)
    until(lambda: _events(server, accepted["job"])[-1:] == ["ended"], "the worker's lines")
    assert _events(server, accepted["job"]) == ["leased", "ended"]
    lines = [line for line in observed.log_of(server, "workers") if line.get("job") == accepted["job"]]
    assert {line["request_id"] for line in lines} == {accepted["request_id"]}
    assert {line["model"] for line in lines} == {accepted["model"]}
    assert all(line["replica"].endswith("-0") for line in lines)
    assert lines[-1]["outcome"] == "completed"
    assert all({"ts", "level", "event"} <= line.keys() for line in observed.log_of(server, "workers"))


def test_replicas_on_ray_are_seen_too(on_ray: running.Running, models: Lab) -> None:
    observed.reads(models.client(tiny.GPT2))
    model = f"{tiny.GPT2} (text-generation)"

    def shown() -> list[dict[str, str]]:
        """The labels of the replicas that say that they are ready, once all have told of themselves and of the job."""
        found = observed.samples(on_ray.url)
        ready = [dict(labels) for name, labels in found if name == "interlace_replica_ready"]
        jobs = total(found, "interlace_jobs_total", outcome="completed", model=model)
        return ready if jobs >= 1 and len(ready) >= 4 else []

    ready = until(shown, "metrics of all replicas")
    assert {labels["model"].split()[0] for labels in ready} == {tiny.GPT2, tiny.LLAMA, tiny.NEOX, tiny.BERT}
    assert len({labels["replica"] for labels in ready}) == 4


def _events(server: running.Running, job_id: str) -> list[str]:
    return [line["event"] for line in observed.log_of(server, "workers") if line.get("job") == job_id]


def _last(server: running.Running) -> dict[str, Any]:
    """The gateway's line on the job that it took in last."""
    return [line for line in observed.log_of(server, "gateway") if line["event"] == "accepted"][-1]
