"""Promise: a job is stopped when you say so, truly, and its story can be read again from where you were."""

import threading
import time
from typing import Any

import httpx
import psutil
import pytest
import running
import tiny
import tiny_families
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from parity import Lab

import interlace
from interlace.protocol.event import Ended, Event, Log
from interlace.protocol.job import JobState

PROMPT = "The Eiffel Tower is in the city of"
DEADLINE = 120.0  # seconds
#: Of a server that gives a job ten minutes: a few seconds are over soon where others want the machine, too.
MODEL = tiny_families.MAMBA
#: Bytes that only the job's process touches, so that it can be told from the others.
WEIGHT = 96 << 20


def posted(client: Any) -> str:
    """A job that prints, holds memory, and never ends by itself."""
    with client.trace(PROMPT, remote=True, blocking=False) as tracer:
        import time

        held = bytearray(b"x") * (96 << 20)
        print("it runs", flush=True)
        for number in range(6000):
            time.sleep(0.1)
            print(f"step {number}", flush=True)
        logits = client.lm_head.output.save()
    return str(tracer.backend.job_id)


def heavy(server: running.Running) -> list[psutil.Process]:
    """The server's processes that have written to as much memory of their own as the job has."""
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if "zygote" in " ".join(process.parent().cmdline()) and process.memory_full_info().uss > WEIGHT:
                found.append(process)
        except (psutil.Error, AttributeError):
            continue
    return found


def until(condition: Any, what: str) -> Any:
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {DEADLINE:g} s"
        time.sleep(0.02)
    return value


class Following:
    """A job's events, read in a thread as they come."""

    def __init__(self, url: str, job_id: str) -> None:
        self.seen: list[tuple[str, Event]] = []
        self._client = interlace.Client(url)
        self._thread = threading.Thread(target=self._read, args=(job_id,), daemon=True)
        self._thread.start()

    def _read(self, job_id: str) -> None:
        with self._client:
            for one in self._client.events(job_id):
                self.seen.append(one)

    def lines(self) -> list[str]:
        return [event.text for _, event in list(self.seen) if isinstance(event, Log)]

    def ended(self) -> Ended:
        self._thread.join(DEADLINE)
        last = self.seen[-1][1]
        assert isinstance(last, Ended)
        return last


def test_a_running_job_is_gone_when_it_is_cancelled(models: Lab, on_families: running.Running) -> None:
    client = models.client(MODEL)
    job_id = posted(client)
    following = Following(on_families.url, job_id)
    until(following.lines, "a line")
    (process,) = until(lambda: heavy(on_families), "the job's process")
    with interlace.Client(on_families.url) as mine:
        assert mine.job(job_id).state is JobState.RUNNING
        asked = time.monotonic()
        assert mine.cancel(job_id).state is JobState.CANCELLED
        until(lambda: not process.is_running(), "its process is gone")  # it would go on for minutes
        print(f"gone {1000 * (time.monotonic() - asked):.0f} ms after it was asked for")
        assert following.ended().state is JobState.CANCELLED
        assert heavy(on_families) == []
        shown = mine.job(job_id)
        assert (shown.state, shown.text) == (JobState.CANCELLED, "The job was cancelled by its owner.")
    poll = RemoteBackend(client.to_model_key(), blocking=False, job_id=job_id)
    with pytest.raises(RemoteError, match="cancelled by its owner"):
        poll()


def test_a_waiting_job_never_runs(models: Lab, on_families: running.Running) -> None:
    client = models.client(MODEL)
    first, second = posted(client), posted(client)
    with interlace.Client(on_families.url) as mine:
        until(lambda: mine.job(first).state is JobState.RUNNING, "the first runs")
        waiting = mine.job(second)
        assert waiting.state is JobState.QUEUED
        assert waiting.place is not None
        mine.cancel(second)
        mine.cancel(first)
        until(lambda: heavy(on_families) == [], "both are gone")
        events = [event for _, event in mine.events(second)]
        assert not [event for event in events if isinstance(event, Log)]
        assert mine.job(second).started is None
        with client.trace(PROMPT, remote=True):
            logits = client.lm_head.output.save()
        assert logits.shape[0] == 1


def test_a_stream_that_broke_goes_on_behind_the_last_event(models: Lab, on_families: running.Running) -> None:
    """As a browser does it: by the id of the last event that came."""
    job_id = posted(models.client(MODEL))
    url = f"{on_families.url}/v1/jobs/{job_id}/events"
    seen: list[tuple[str, str]] = []
    for _ in range(3):
        headers = {"Last-Event-ID": seen[-1][0]} if seen else {}
        with httpx.stream("GET", url, headers=headers, timeout=DEADLINE) as answer:
            before, event_id = len(seen), ""
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    event_id = line[4:]
                elif line.startswith("data: "):
                    seen.append((event_id, line[6:]))
                if len(seen) == before + 7:
                    break  # and the connection drops
    with interlace.Client(on_families.url) as mine:
        mine.cancel(job_id)
        whole = [event_id for event_id, _ in mine.events(job_id)]
    assert [event_id for event_id, _ in seen] == whole[:21]


def test_an_operator_lets_a_model_and_a_replica_rest(models: Lab, on_processes: running.Running) -> None:
    client = models.client(tiny.GPT2)
    with interlace.Client(on_processes.url) as operator:
        replica = replica_of(on_processes, tiny.GPT2)
        for rest, wake in (
            (lambda: operator.pause(tiny.GPT2), lambda: operator.resume(tiny.GPT2)),
            (lambda: operator.drain(replica), lambda: operator.undrain(replica)),
        ):
            rest()
            try:
                with client.trace(PROMPT, remote=True, blocking=False) as tracer:
                    logits = client.lm_head.output.save()
                job_id = str(tracer.backend.job_id)
                time.sleep(2)  # a worker asks for jobs each second
                waits = operator.job(job_id)
                assert (waits.state, waits.attempts) == (JobState.QUEUED, 0)
            finally:
                wake()
            last = list(operator.events(job_id))[-1][1]
            assert isinstance(last, Ended)
            assert last.state is JobState.COMPLETED


def replica_of(server: running.Running, repo_id: str) -> str:
    deployments = httpx.get(f"{server.url}/status").json()["deployments"].values()
    (found,) = [one["replica_id"] for one in deployments if one["repo_id"] == repo_id]
    return str(found)
