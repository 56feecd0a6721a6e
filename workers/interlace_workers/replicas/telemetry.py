"""What a replica tells of its work: metrics, log lines and spans, by one call where something happens.

telemetry.loaded(loaded)
with telemetry.job(job, attempt) as watch:
    watch.ran(outcome)
    with watch.transfer():
        result = await results.put(job, staged)
    watch.ended(state)
await telemetry.publish(ready=..., running=..., resident_bytes=...)
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from interlace.protocol.job import Cost, Job, JobState
from interlace.protocol.model import ModelKey
from interlace_state import log
from interlace_state.metrics import ReplicaMetrics
from interlace_state.tracing import Tracing
from interlace_workers.executors.base import Done, ExecutorLost, Failed, Step
from interlace_workers.order import Loaded
from interlace_workers.replicas import metrics

_MOMENT = 0.005  # seconds


class Telemetry:
    """One replica's, in a process of its own."""

    def __init__(self, shown: ReplicaMetrics, tracing: Tracing, key: ModelKey, name: str, slots: int) -> None:
        self._shown = shown
        self._tracing = tracing
        self._key = key
        self._name = name
        self._started = time.monotonic()
        metrics.SLOTS.set(slots)

    def loaded(self, loaded: Loaded) -> None:
        """The model is there."""
        seconds = time.monotonic() - self._started if loaded.seconds is None else loaded.seconds
        metrics.WEIGHTS_BYTES.set(loaded.size_bytes)
        metrics.PARAMETERS.set(loaded.n_params)
        metrics.LOAD_SECONDS.set(seconds)
        log.info("loaded", seconds=round(seconds, 3), size_bytes=loaded.size_bytes, missing=loaded.missing)

    def job(self, job: Job, attempt: int) -> "Watch":
        """Follows one leased job, as a context manager around all that the replica does for it."""
        return Watch(self._tracing, job, attempt)

    async def publish(self, *, ready: bool, running: int, resident_bytes: int) -> None:
        """Show all metrics as they are now. Raises RedisError."""
        metrics.READY.set(ready)
        metrics.RUNNING.set(running)
        metrics.RESIDENT_BYTES.set(resident_bytes)
        await self._shown.publish(self._name, metrics.exposition())


class Watch:
    """Follows one job from its lease to its end here."""

    def __init__(self, tracing: Tracing, job: Job, attempt: int) -> None:
        self._tracing = tracing
        self._job = job
        self._attempt = attempt
        self._outcome = "refused"
        self._ended = False
        self._parted = False
        self._error = ""
        self._ran: list[Done | Failed] = []
        self._steps: list[Step] = []

    def __enter__(self) -> "Watch":
        job, now = self._job, time.time()
        self._bound = log.bound(job=job.id, request_id=job.request_id)
        self._bound.__enter__()
        self._waited = max(0.0, now - job.submitted_at)
        metrics.WAIT_SECONDS.observe(self._waited)
        self._tracing.add("queue wait", job.traceparent, job.submitted_at, now)
        self._span = self._tracing.begin("job", job.traceparent, now, kind="CONSUMER")
        # A line takes a tenth of a millisecond: the job is on its way to its process first.
        self._saying = asyncio.get_running_loop().call_later(_MOMENT, self._say_leased)
        return self

    def _say_leased(self) -> None:
        self._saying.cancel()
        log.info("leased", waited_seconds=round(self._waited, 4), attempt=self._attempt)

    def ran(self, outcome: Done | Failed) -> None:
        """Its sandbox has ended, so or so."""
        self._outcome = outcome.reason if isinstance(outcome, Failed) else "completed"
        self._steps += outcome.steps
        self._ran.append(outcome)  # counted when nobody waits any more

    @contextmanager
    def transfer(self, staged: Path) -> Iterator[None]:
        """Around the result's way into the store."""
        start, size = time.time(), staged.stat().st_size
        yield
        end = time.time()
        metrics.RESULTS.inc()
        metrics.RESULT_BYTES.inc(size)
        metrics.TRANSFER_SECONDS.observe(max(0.0, end - start))
        self._steps.append(Step("transfer", start, end))

    def streamed(self, size: int) -> None:
        """A value of so many bytes has left before its end."""
        metrics.VALUES.inc()
        metrics.VALUE_BYTES.inc(size)

    def parted(self) -> None:
        """It is given back, to run alone."""
        self._parted = True

    def ended(self, state: JobState) -> None:
        """Its last event is written."""
        self._ended = True
        if state is JobState.CANCELLED:  # it was asked to end, and has
            self._outcome = "cancelled"
        elif state is not JobState.COMPLETED:
            self._error = self._outcome = "not_stored" if self._outcome == "completed" else self._outcome

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._saying.cancelled():
            self._say_leased()
        if self._parted:
            self._outcome = "apart"
        elif not self._ended:
            self._outcome = self._error = _left(error)
        for outcome in self._ran:
            _count(outcome.cost)
        for step in self._steps:
            metrics.STEP_SECONDS.labels(step.name).observe(max(0.0, step.end - step.start))
            self._tracing.add(step.name, self._span.traceparent, step.start, step.end)
        metrics.JOBS.labels(self._outcome).inc()
        self._span.end(error=self._error, job=self._job.id, request_id=self._job.request_id, outcome=self._outcome)
        seconds = {step.name: round(step.end - step.start, 4) for step in self._steps}
        log.info("ended", outcome=self._outcome, seconds=seconds)
        self._bound.__exit__(None, None, None)


def _count(cost: Cost) -> None:
    metrics.EXECUTE_SECONDS.observe(cost.runtime or 0.0)
    metrics.MERGED.observe(cost.merged or 1)
    metrics.CPU_SECONDS.inc(cost.cpu_seconds or 0.0)
    metrics.JOB_MEMORY_BYTES.observe(cost.max_memory_usage or 0)


def _left(error: BaseException | None) -> str:
    """How a job left that this replica has not ended."""
    if isinstance(error, asyncio.CancelledError):
        return "given_back"
    return "lost" if isinstance(error, ExecutorLost) else "taken_away"
