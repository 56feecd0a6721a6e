"""How the seconds of one replica are shared out among tenants, beside what first come, first served would have done.

    python benchmarks/fairness.py [--seconds 60] [--json FILE]

On a real server with one slot, by stock clients with keys of their own: `a` queues 300 jobs of 0.1 s, `b` 40 of 1 s and
`c`, whose weight is 2, 100 of 0.3 s, all at once while the model is paused; then `d` sends a single trace every 3 s.
Counted are the seconds from the moment that a worker takes a job to the job's end, while `a`, `b` and `c` all have jobs
waiting, over the tenant's weight; Jain's index (sum x)^2 / (n sum x^2) of these three, which is 1 where they are equal;
and how long `d` waits.

First come, first served is a simulation: the same jobs in the order in which they were taken in, each as long as it was
measured (one that did not run, as the mean of its tenant's), with no pause between two of them.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import service

from interlace import Client
from interlace.protocol.event import StateChanged
from interlace.protocol.job import JobState
from interlace.protocol.jobs import JobView

#: tenant -> its jobs and the seconds that each sleeps.
_QUEUED = {"a": (300, 0.1), "b": (40, 1.0), "c": (100, 0.3)}
_WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0}
_SINGLE = "d"
_EVERY = 3.0  # seconds


@dataclass(frozen=True)
class Run:
    """One job as it ran, or as it would have."""

    tenant: str
    submitted: float
    #: When a worker took it: from then on until its end nobody else has the slot.
    taken: float
    #: When its own code began.
    started: float
    ended: float


def submit(client: Any, key: str, seconds: float) -> None:
    """Queue one job that sleeps beside the model."""
    from nnsight.intervention.backends.remote import RemoteBackend

    backend = RemoteBackend(client.to_model_key(), api_key=key, blocking=False)
    with client.trace([[1, 2, 3, 4]], backend=backend):
        import time

        time.sleep(seconds)
        hidden = client.transformer.h[0].output.save()


def queue_all(keys: Mapping[str, str]) -> None:
    """Each tenant queues its jobs from a thread, and a model object, of its own."""
    from nnsight import TransformersModel

    def fill(tenant: str) -> None:
        client = TransformersModel(service.GPT2, task="text-generation")
        count, seconds = _QUEUED[tenant]
        for _ in range(count):
            submit(client, keys[tenant], seconds)

    with ThreadPoolExecutor(len(_QUEUED)) as pool:
        list(pool.map(fill, _QUEUED))


def contend(url: str, keys: Mapping[str, str], seconds: float) -> "Contest":
    """Fill the queues and let them run."""
    from nnsight import TransformersModel

    with Client(url, keys["operator"]) as operator:
        operator.pause(service.GPT2)
        queue_all(keys)
        client = TransformersModel(service.GPT2, task="text-generation")
        begun = time.time()
        operator.resume(service.GPT2)
        while (now := time.time()) < begun + seconds:
            time.sleep(_EVERY - (now - begun) % _EVERY)
            submit(client, keys[_SINGLE], 0.0)
        end = time.time()
        operator.pause(service.GPT2)
        while any(not (job.state.ended or job.state is JobState.QUEUED) for job in operator.jobs()):
            time.sleep(0.1)
        jobs = list(operator.jobs())
        runs = {
            job.id: Run(job.tenant, job.submitted, taken(operator, job.id), job.started, job.ended)
            for job in jobs
            if job.started is not None and job.ended is not None
        }
        return Contest(begun, window_end(jobs, end), jobs, runs)


@dataclass(frozen=True)
class Contest:
    """What came of it."""

    begun: float
    #: When the first of the three had no job left that waits, or when it was called off.
    end: float
    jobs: Sequence[JobView]
    #: Of the jobs that ended, by id.
    runs: Mapping[str, Run]


def taken(operator: Client, job_id: str) -> float:
    """When a worker took a job; an event's id is the moment at which Redis had it, in ms."""
    for event_id, event in operator.events(job_id, follow=False):
        if isinstance(event, StateChanged) and event.state is JobState.LEASED:
            return int(event_id.partition("-")[0]) / 1000
    raise AssertionError(f"{job_id} ran, and nobody took it")


def window_end(jobs: Sequence[JobView], end: float) -> float:
    ends = [end]
    for tenant in _QUEUED:
        starts = [job.started for job in jobs if job.tenant == tenant]
        known = [start for start in starts if start is not None]
        if len(known) == len(starts):
            ends.append(max(known))
    return min(ends)


def first_come(contest: Contest) -> list[Run]:
    """The same jobs, each taken when all that came before it have ended."""
    usual = {}
    for tenant in (*_QUEUED, _SINGLE):
        mine = [run for run in contest.runs.values() if run.tenant == tenant]
        usual[tenant] = (
            statistics.mean(run.started - run.taken for run in mine),
            statistics.mean(run.ended - run.taken for run in mine),
        )
    free, found = contest.begun, []
    for job in sorted(contest.jobs, key=lambda one: one.submitted):
        run = contest.runs.get(job.id)
        until_start, whole = (run.started - run.taken, run.ended - run.taken) if run else usual[job.tenant]
        begun = max(free, job.submitted)
        free = begun + whole
        found.append(Run(job.tenant, job.submitted, begun, begun + until_start, free))
    return found


def shares(runs: Sequence[Run], begun: float, end: float) -> dict[str, Any]:
    """Seconds served in the window, over weights, their index, and the waits of the single jobs sent in it."""
    served = {
        tenant: sum(max(0.0, min(run.ended, end) - max(run.taken, begun)) for run in runs if run.tenant == tenant)
        for tenant in (*_QUEUED, _SINGLE)
    }
    over = {tenant: served[tenant] / _WEIGHTS[tenant] for tenant in _QUEUED}
    square = sum(one**2 for one in over.values())
    waits = sorted(run.started - run.submitted for run in runs if run.tenant == _SINGLE and run.submitted < end)
    return {
        "seconds_served": {tenant: round(one, 2) for tenant, one in served.items()},
        "seconds_over_weight": {tenant: round(one, 2) for tenant, one in over.items()},
        "jain": round(sum(over.values()) ** 2 / (len(over) * square), 4) if square else None,
        "single_wait_p50_s": round(statistics.median(waits), 2) if waits else None,
        "single_wait_max_s": round(waits[-1], 2) if waits else None,
        "single_jobs": len(waits),
    }


def measure(seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        configuration = {
            "runtime": "process",
            "models": [service.small_gpt2(folder / "gpt2")],
            "tenants": {tenant: {"weight": weight} for tenant, weight in _WEIGHTS.items()},
            "gateway": {"drain_seconds": 1},
        }
        with service.running(folder, configuration) as server:
            keys = {tenant: server.key(tenant) for tenant in (*_QUEUED, _SINGLE)}
            keys["operator"] = server.key("operator", "admin")
            service.stock_client(server.url, folder / "hf")
            contest = contend(server.url, keys, seconds)
    begun, end, runs = contest.begun, contest.end, list(contest.runs.values())
    mine = [run for run in runs if run.ended <= end]
    return {
        "window_s": round(end - begun, 1),
        "jobs_run": {tenant: sum(run.tenant == tenant for run in mine) for tenant in (*_QUEUED, _SINGLE)},
        "longest_job_s": round(max(run.ended - run.taken for run in mine), 2),
        "fair": shares(runs, begun, end),
        "first_come_first_served": shares(first_come(contest), begun, end),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="at most; less if a tenant has no more jobs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    figures = measure(arguments.seconds) | service.circumstances()
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
