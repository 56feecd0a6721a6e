"""What a replica counts and times, and how little of it a sandbox can make up."""

import asyncio
import math
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend
from transformers import AutoTokenizer

from interlace.protocol.job import Cost, Job, JobState, Limits
from interlace.protocol.model import ModelKey
from interlace_state.settings.services import TelemetryConfig
from interlace_state.tracing import Tracing
from interlace_workers import steps
from interlace_workers.executors.base import Done, ExecutorLost, Failed, Happening, Step
from interlace_workers.executors.fork import ForkExecutor
from interlace_workers.replicas import metrics
from interlace_workers.replicas.telemetry import Watch

in_module = pytest.mark.asyncio(loop_scope="module")


class Capture(Backend):  # type: ignore[misc]
    """Serializes a trace as the stock client does, and keeps it."""

    payload = b""

    def __call__(self, tracer: Any) -> None:
        self.payload = RequestModel.serialize(tracer, True)


@pytest.fixture(scope="module")
def client(tiny_models: Path) -> TransformersModel:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models)
    return TransformersModel(str(tiny_models), task="text-generation", tokenizer=tokenizer)


def job_of(wall_seconds: float = 60.0) -> Job:
    return Job(
        id="0" * 32,
        tenant="local",
        model=ModelKey(repo_id="tests/model"),
        compress=True,
        limits=Limits(wall_seconds=wall_seconds, memory_bytes=512 << 20),
        payload_bytes=1,
        submitted_at=time.time() - 1,
    )


async def run(executor: ForkExecutor, payload: bytes, result: Path, **limits: float) -> Happening:
    result.write_bytes(b"")
    happenings = [one async for one in executor.run(job_of(**limits), payload, result)]
    return happenings[-1]


def count(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def payload_of(client: TransformersModel, code: str = "") -> bytes:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        exec(code)
        hidden = client.transformer.h[0].output.save()
    return backend.payload


@in_module
async def test_the_steps_of_a_job_follow_each_other(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    before, asked = count("interlace_sandbox_kills_total", reason="finished"), time.time()
    end = await run(executor, payload_of(client, "import time; time.sleep(0.3)"), tmp_path / "result")
    assert isinstance(end, Done)
    assert [step.name for step in end.steps] == ["fork", "deserialize", "forward", "serialize"]
    times = [asked, *(moment for step in end.steps for moment in (step.start, step.end)), time.time()]
    assert times == sorted(times)
    forward = end.steps[2]
    assert forward.end - forward.start >= 0.3
    assert end.cost.runtime is not None
    assert sum(step.end - step.start for step in end.steps[1:]) <= end.cost.runtime + 1e-3  # it is rounded
    assert count("interlace_sandbox_kills_total", reason="finished") == before + 1


@in_module
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError", "raised"),
        ("import os; os._exit(1)", "died"),
        ("while True: pass", "wall_seconds"),
        ("import os\nfor fd in range(3, 9):\n  try: os.write(fd, b'nonsense')\n  except OSError: pass", "broken_frame"),
    ],
)
async def test_why_sandboxes_end(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path, code: str, reason: str
) -> None:
    before = {name: count("interlace_sandbox_kills_total", reason=name) for name in metrics.KILLS}
    seconds = 1.5 if reason == "wall_seconds" else 60.0
    end = await run(executor, payload_of(client, code), tmp_path / "result", wall_seconds=seconds)
    assert isinstance(end, Failed)
    after = {name: count("interlace_sandbox_kills_total", reason=name) for name in metrics.KILLS}
    assert (end.reason, after) == (reason, before | {reason: before[reason] + 1}), end.text


@in_module
async def test_a_run_that_is_closed_is_counted_as_that(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    before = count("interlace_sandbox_kills_total", reason="closed")
    starts = count("interlace_sandbox_starts_total")
    (tmp_path / "result").write_bytes(b"")
    running = executor.run(job_of(), payload_of(client, "while True: pass"), tmp_path / "result")
    await anext(running)
    await running.aclose()
    assert count("interlace_sandbox_kills_total", reason="closed") == before + 1
    async with asyncio.timeout(60):  # the next one is forked ahead
        while count("interlace_sandbox_starts_total") == starts:
            await asyncio.sleep(0.01)


@in_module
@pytest.mark.parametrize(
    "told", ["'!3d', 1e9, 0.0, 0.0", "'!3d', float('nan'), 0.0, 0.0", "'!3d', -1.0, 0.0, 0.0", "'!d', 0.0"]
)
async def test_times_that_a_job_makes_up_are_not_believed(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path, told: str
) -> None:
    code = f"""
import os, struct
body = struct.pack({told})
for fd in range(3, 9):
    try:
        os.write(fd, struct.pack("!BI", 2, len(body)) + body) if os.fstat(fd).st_mode >> 12 == 1 else None
    except OSError:
        pass
"""
    end = await run(executor, payload_of(client, code), tmp_path / "result")
    assert isinstance(end, Done), end
    assert [step.name for step in end.steps] == ["fork"]


@given(st.binary(max_size=64) | st.tuples(st.floats(), st.floats(), st.floats()).map(lambda x: struct.pack("!3d", *x)))
def test_whatever_is_told_only_what_can_be_true_is_taken(body: bytes) -> None:
    taken = steps.decode(body, 10.0)
    if taken:
        assert [name for name, _ in taken] == ["deserialize", "forward", "serialize"]
        assert all(math.isfinite(seconds) and seconds >= 0 for _, seconds in taken)
        assert sum(seconds for _, seconds in taken) <= 10.0


def test_what_a_child_tells_is_read_back() -> None:
    assert steps.decode(steps.encode([1.0, 1.5, 2.5, 2.75]), 2.0) == [
        ("deserialize", 0.5),
        ("forward", 1.0),
        ("serialize", 0.25),
    ]


def watching() -> Watch:
    return Watch(Tracing(TelemetryConfig(), "tests"), job_of(), 1)


@pytest.mark.parametrize("lasts", [True, False])
async def test_a_lease_is_logged_once_and_before_its_end(caplog: pytest.LogCaptureFixture, lasts: bool) -> None:
    caplog.set_level("INFO", "interlace")
    with watching() as watch:
        async with asyncio.timeout(60):
            while lasts and not caplog.messages:
                await asyncio.sleep(0)
        watch.ended(JobState.ERROR)
    assert caplog.messages == ["leased", "ended"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(asyncio.CancelledError(), "given_back"), (ExecutorLost("gone"), "lost"), (None, "taken_away")],
)
async def test_a_job_that_leaves_without_an_end(error: BaseException | None, outcome: str) -> None:
    before = count("interlace_jobs_total", outcome=outcome)
    with suppress(asyncio.CancelledError, ExecutorLost), watching():
        if error:
            raise error
    assert count("interlace_jobs_total", outcome=outcome) == before + 1


async def test_a_job_that_ends(tmp_path: Path) -> None:
    names = ("interlace_job_wait_seconds_sum", "interlace_job_execute_seconds_sum", "interlace_job_cpu_seconds_total")
    names += ("interlace_results_stored_total", "interlace_result_stored_bytes_total")
    before = {name: count(name) for name in names}
    refused = count("interlace_jobs_total", outcome="refused")
    (tmp_path / "staged").write_bytes(b"12345")
    with watching() as watch:
        watch.ran(Done(Cost(runtime=2.0, cpu_seconds=1.5), steps=(Step("forward", 5.0, 7.0),)))
        with watch.transfer(tmp_path / "staged"):
            (tmp_path / "staged").unlink()  # as the store takes it
        watch.ended(JobState.COMPLETED)
    grown = {name: count(name) - before[name] for name in names}
    assert 1 <= grown.pop(names[0]) < 60
    assert grown == {names[1]: 2.0, names[2]: 1.5, names[3]: 1, names[4]: 5}
    not_stored, stored = count("interlace_jobs_total", outcome="not_stored"), count("interlace_results_stored_total")
    (tmp_path / "staged").touch()
    with watching() as watch:
        watch.ran(Done(Cost()))
        with suppress(OSError), watch.transfer(tmp_path / "staged"):
            raise OSError("no space is left")
        watch.ended(JobState.ERROR)
    assert count("interlace_jobs_total", outcome="not_stored") == not_stored + 1
    assert count("interlace_results_stored_total") == stored
    with watching() as watch:  # its payload was gone
        watch.ended(JobState.ERROR)
    assert count("interlace_jobs_total", outcome="refused") == refused + 1


async def test_values_that_leave_before_the_end() -> None:
    names = ("interlace_values_streamed_total", "interlace_value_streamed_bytes_total")
    before = [count(name) for name in names]
    with watching() as watch:
        watch.streamed(5)
        watch.streamed(7)
    assert [count(name) - then for name, then in zip(names, before, strict=True)] == [2, 12]


async def test_jobs_that_share_and_a_job_that_cannot(tmp_path: Path) -> None:
    shared, apart = "interlace_job_merged", "interlace_jobs_total"
    before = count(f"{shared}_sum"), count(f"{shared}_count"), count(apart, outcome="apart")
    for merged in (8, None):
        with watching() as watch:
            watch.ran(Done(Cost(merged=merged)))
            watch.ended(JobState.ERROR)
    with watching() as watch:
        watch.parted()
    after = count(f"{shared}_sum"), count(f"{shared}_count"), count(apart, outcome="apart")
    assert [now - then for now, then in zip(after, before, strict=True)] == [9, 2, 1]


def test_each_series_is_there_before_its_first_event() -> None:
    text = metrics.exposition().decode()
    for outcome in metrics.OUTCOMES:
        assert f'interlace_jobs_total{{outcome="{outcome}"}}' in text
    for step in metrics.STEPS:
        assert f'interlace_job_step_seconds_count{{step="{step}"}}' in text
