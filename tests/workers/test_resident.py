"""The resident executor: jobs in turn in the process that owns the model, which is replaced when one has spoiled it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import tiny
import torch
from nnsight.modeling.transformers import TransformersModel
from parties import Capture, job_of, run, together

from interlace_workers.executors.base import Failed
from interlace_workers.executors.resident import ResidentExecutor
from interlace_workers.order import Load

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)],
)
async def executor(request: pytest.FixtureRequest, tiny_models: Path, home: Path) -> AsyncIterator[ResidentExecutor]:
    (path,) = (home / "hf" / "hub" / f"models--{tiny.GPT2.replace('/', '--')}" / "snapshots").iterdir()
    load = Load(
        path=str(path),
        task="text-generation",
        dtype="float32",
        trust_remote_code=False,
        threads=1,
        device=request.param,
        resident=True,
    )
    executor = ResidentExecutor(load, ("local",))
    await executor.start()
    yield executor
    await executor.stop()


@pytest.fixture(scope="module")
def client(tiny_models: Path) -> TransformersModel:
    return TransformersModel(tiny.GPT2, task="text-generation")


def reading(client: TransformersModel) -> bytes:
    backend = Capture()
    with client.trace([5, 9, 13], backend=backend):
        hidden = client.transformer.h[1].output.save()
        print("read")
    return backend.payload


async def test_its_values_are_those_of_a_local_trace(
    executor: ResidentExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    local = TransformersModel(tiny.GPT2, task="text-generation", dispatch=True, device="cpu")
    with local.trace([5, 9, 13]):
        expected = local.transformer.h[1].output.save()
    ran = await run(executor, reading(client), tmp_path)
    torch.testing.assert_close(ran.saved["hidden"], expected, rtol=1e-4, atol=1e-5)
    assert ran.saved["hidden"].device.type == "cpu"
    assert ran.printed == ["read"]


async def test_jobs_share_one_process_and_what_nnsight_keeps_of_one_is_gone_for_the_next(
    executor: ResidentExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    assert executor._zygote is not None
    pid = executor._zygote.pid
    before = (await run(executor, reading(client), tmp_path)).saved["hidden"]
    backend = Capture()
    with client.session(backend=backend):
        with client.edit(inplace=True):
            client.transformer.h[0].output[:] = 0
        with client.trace([5, 9, 13]):
            edited = client.transformer.h[1].output.save()
            client.lm_head.output.sum().backward()
    torch_default = Capture()
    with client.trace([5, 9, 13], backend=torch_default):
        import torch as library

        library.set_grad_enabled(False)
        library.set_default_dtype(library.float64)
        zeros = library.zeros(1).save()
    assert not torch.equal((await run(executor, backend.payload, tmp_path)).saved["edited"], before)
    assert (await run(executor, torch_default.payload, tmp_path)).saved["zeros"].dtype == torch.float64
    after = (await run(executor, reading(client), tmp_path)).saved["hidden"]
    assert torch.equal(before, after)
    assert after.requires_grad == before.requires_grad
    assert executor._zygote.pid == pid


async def test_a_trace_inside_that_says_remote_is_told_not_to(
    executor: ResidentExecutor, client: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "to_model_key", lambda: "unused", raising=False)
    backend = Capture()
    with client.session(backend=backend):
        with client.trace([5, 9, 13], remote=True):
            hidden = client.transformer.h[0].output.save()
    monkeypatch.undo()
    assert "leave out `remote=True`" in (await run(executor, backend.payload, tmp_path)).error


@pytest.mark.parametrize("spoil", ["weight", "hook", "data", "frozen"])
async def test_a_model_that_a_job_has_changed_is_replaced(
    executor: ResidentExecutor, client: TransformersModel, tmp_path: Path, spoil: str
) -> None:
    before = (await run(executor, reading(client), tmp_path)).saved["hidden"]
    assert executor._zygote is not None
    pid = executor._zygote.pid
    backend = Capture()
    with client.trace([5, 9, 13], backend=backend):
        block = client.transformer.h[0]._module
        if spoil == "weight":
            block.mlp.c_fc.weight = None
        elif spoil == "hook":
            block.register_forward_hook(lambda *_: None)
        elif spoil == "data":
            block.mlp.c_fc.weight.data[0, 0] += 1
        else:
            block.mlp.c_fc.weight.requires_grad_(False)
        token = client.lm_head.output.argmax().save()
    await run(executor, backend.payload, tmp_path)
    after = (await run(executor, reading(client), tmp_path)).saved["hidden"]
    assert torch.equal(before, after)
    assert executor._zygote.pid != pid


@pytest.mark.parametrize(
    ("ending", "says"),
    [
        ("raise ValueError('no')", "ValueError: no"),
        ("import os; os._exit(3)", "The process that holds the model ended"),
        ("import time; time.sleep(60)", "ran for 1 s, its limit"),
    ],
)
async def test_a_job_that_fails_says_why_and_the_next_one_runs(
    executor: ResidentExecutor, client: TransformersModel, tmp_path: Path, ending: str, says: str
) -> None:
    backend = Capture()
    with client.trace([5, 9, 13], backend=backend):
        exec(ending)
        hidden = client.transformer.h[0].output.save()
    seconds = 1.0 if "its limit" in says else 60.0
    assert says in (await run(executor, backend.payload, tmp_path, wall_seconds=seconds)).error
    assert (await run(executor, reading(client), tmp_path)).saved["hidden"].shape == (1, 3, 64)


async def test_a_job_that_fails_leaves_no_descriptor_in_the_process_that_stays(
    executor: ResidentExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    counting, failing = Capture(), Capture()
    with client.trace([5, 9, 13], backend=counting):
        import os

        count = len(os.listdir("/proc/self/fd")).save()
    with client.trace([5, 9, 13], backend=failing):
        raise ValueError("no")
    before = (await run(executor, counting.payload, tmp_path)).saved["count"]
    assert executor._zygote is not None
    pid = executor._zygote.pid
    for payload in (failing.payload, b"no payload", reading(client)) * 3:
        env = {"attn_implementation": "none" if payload == reading(client) else "sdpa"}
        job = job_of(payload).model_copy(update={"env": env})
        result = tmp_path / job.id
        result.write_bytes(b"")
        *_, end = [happening async for happening in executor.run(job, payload, result)]
        assert isinstance(end, Failed)
    assert (await run(executor, counting.payload, tmp_path)).saved["count"] == before
    assert executor._zygote.pid == pid


async def test_others_than_trusted_tenants_are_refused(
    executor: ResidentExecutor, client: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_trusted", ("somebody else",))
    assert "only for tenants that its operator trusts" in (await run(executor, reading(client), tmp_path)).error


async def test_jobs_that_come_together_run_one_after_another(
    executor: ResidentExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    ran = await together(executor, [reading(client)] * 3, tmp_path)
    assert all(torch.equal(one.saved["hidden"], ran[0].saved["hidden"]) for one in ran)
    assert [one.merged for one in ran] == [0, 0, 0]
