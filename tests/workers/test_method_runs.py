"""Methods on real executors: forked and resident, cut short, and what of them is left in a process that stays."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import parties
import pytest
import pytest_asyncio

from interlace.protocol.job import Job, JobKind
from interlace.protocol.method import Allowance, MethodCall, Outcome, Payload
from interlace_workers.executors.base import Done, Failed, Runner
from interlace_workers.executors.fork import ForkExecutor
from interlace_workers.executors.resident import ResidentExecutor
from interlace_workers.order import Load

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALLOWANCE = Allowance(
    artifact_bytes=1 << 20,
    kept_artifact_bytes=1 << 20,
    kept_artifacts=10,
    checkpoint_bytes=1 << 20,
    checkpoint_seconds=1.0,
    cancel_grace=30.0,
)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["fork", "resident"])
async def executor(request: pytest.FixtureRequest, tiny_models: Path) -> AsyncIterator[Any]:
    load = Load(str(tiny_models), "text-generation", "float32", trust_remote_code=False, threads=1)
    if request.param == "fork":
        executor: Any = ForkExecutor(load)
    else:
        executor = ResidentExecutor(Load(**vars(load) | {"resident": True}), trusted=("local",))
    await executor.start()
    yield executor
    await executor.stop()


def job_of(payload: bytes) -> Job:
    call = MethodCall(ref="lens.logit@1", params_sha256="0" * 64, allowance=ALLOWANCE)
    job = parties.job_of(payload)
    return job.model_copy(
        update={"kind": JobKind.METHOD, "method": call, "compress": False, "env": {}, "tenant": "local"}
    )


async def run(runner: Runner, folder: Path, **params: Any) -> tuple[list[Any], bytes]:
    said = {"prompts": ["The Eiffel Tower is in", "Two plus two is"]} | params
    payload = Payload(method="lens.logit@1", params=said).model_dump_json().encode()
    job = job_of(payload)
    result = folder / job.id
    result.write_bytes(b"")
    happenings = [one async for one in runner.run(job, payload, result)]
    return happenings, result.read_bytes()


async def test_it_runs_and_leaves_the_model_as_it_was(executor: Any, tmp_path: Path) -> None:
    results = set()
    for _ in range(3):
        happenings, data = await run(executor, tmp_path)
        assert isinstance(happenings[-1], Done), happenings[-1]
        outcome = Outcome.model_validate_json(data)
        assert (outcome.forwards, outcome.dtype) == (2, "float32")
        results.add(json.dumps(outcome.result, sort_keys=True))
    assert len(results) == 1
    happenings, data = await run(executor, tmp_path, layers=[99])
    assert isinstance(happenings[-1], Failed)
    assert "`params.layers` has 99" in happenings[-1].text
    assert "Traceback" not in happenings[-1].text
    assert data == b""
    assert isinstance((await run(executor, tmp_path))[0][-1], Done)


async def test_one_that_is_cut_short_ends_with_what_it_has(executor: Any, tmp_path: Path) -> None:
    said = {"prompts": ["The Eiffel Tower is in"] * 5_000}
    payload = Payload(method="lens.logit@1", params=said).model_dump_json().encode()
    job = job_of(payload)
    result = tmp_path / job.id
    result.write_bytes(b"")
    happenings = []
    async for one in executor.run(job, payload, result):
        happenings.append(one)
        if type(one).__name__ == "Progress":
            executor.cut_short(job.id)
    assert isinstance(happenings[-1], Done), happenings[-1]
    outcome = Outcome.model_validate_json(result.read_bytes())
    assert 0 < outcome.forwards < 5_000
    (warning,) = outcome.result["warnings"]
    assert warning == f"cancelled after {outcome.forwards} of 5000 prompts"
    executor.cut_short(job.id)  # too late, and no matter
    assert isinstance((await run(executor, tmp_path))[0][-1], Done)
