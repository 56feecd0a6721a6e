"""Jobs with adapters on a real executor: their memory counts, nothing of them is left to user code, parties agree."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import parties
import pytest
import pytest_asyncio
import safetensors.torch
import tiny
import torch
from nnsight.modeling.transformers import TransformersModel
from parties import Capture, Run

from interlace.protocol.artifact import wanted
from interlace_workers.executors.base import Apart, Runner, Sealed
from interlace_workers.executors.party import MergingExecutor
from interlace_workers.order import Load
from interlace_workers.replicas.adapters import seal

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="module")
def client(tiny_models: Path) -> TransformersModel:
    return TransformersModel(tiny.GPT2, task="text-generation")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def executor(tiny_models: Path) -> AsyncIterator[MergingExecutor]:
    # The lab's model is of the same shape, and lies in a folder.
    load = Load(str(tiny_models), "text-generation", "float32", trust_remote_code=False, threads=1)
    executor = MergingExecutor(load)
    await executor.start()
    yield executor
    await executor.stop()


def adapter(rank: int, seed: int = 1) -> Sealed:
    """A LoRA of each block's attention with random weights."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(4):
        name = f"base_model.model.transformer.h.{layer}.attn.c_attn"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, 64, generator=random)
        tensors[f"{name}.lora_B.weight"] = torch.randn(192, rank, generator=random) / rank
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    (asked,) = wanted({"peft": "lab/adapter"})
    return seal(asked, json.dumps(config).encode(), safetensors.torch.save(tensors), (rank, seed))


def logits_of(client: TransformersModel) -> bytes:
    backend = Capture()
    with client.trace(PROMPT, backend=backend):
        logits = client.lm_head.output.save()
    return backend.payload


async def run(runner: Runner, payload: bytes, folder: Path, adapters: Sequence[Sealed] = (), **limits: Any) -> Run:
    job = parties.job_of(payload, **limits)
    if adapters:
        job = job.model_copy(update={"env": job.env | {"peft": "lab/adapter"}})
    result = folder / job.id
    result.write_bytes(b"")
    happenings = [one async for one in runner.run(job, payload, result, adapters)]
    return Run(happenings, result.read_bytes())


async def test_its_weights_are_a_part_of_the_jobs_memory(
    executor: MergingExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    payload, large = logits_of(client), adapter(100_000)  # 400 MB
    small = await run(executor, payload, tmp_path, memory_bytes=192 << 20)
    over = await run(executor, payload, tmp_path, [large], memory_bytes=192 << 20)
    assert "`limits.memory_bytes`" in over.error
    fits = await run(executor, payload, tmp_path, [large], memory_bytes=2 << 30)
    assert not torch.allclose(fits.saved["logits"], small.saved["logits"], atol=1e-3)


async def test_user_code_finds_no_descriptor_of_it(
    executor: MergingExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    with client.trace(PROMPT, backend=backend):
        sizes = []
        for fd in range(256):
            with contextlib.suppress(OSError):
                sizes.append(os.fstat(fd).st_size)
        sizes.save()
    sealed = adapter(4)
    found = (await run(executor, backend.payload, tmp_path, [sealed])).saved["sizes"]
    assert found
    assert os.fstat(sealed.file.fileno()).st_size not in found


async def test_a_party_of_different_adapters_is_none(
    executor: MergingExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    payload, one, other = logits_of(client), adapter(4), adapter(4, 2)
    alone = [(await run(executor, payload, tmp_path, [which])).saved["logits"] for which in (one, other)]
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)

    async def party(*adapters: Sequence[Sealed]) -> list[Run | BaseException]:
        seats = executor.party(len(adapters))
        running = [run(seat, payload, tmp_path, which) for seat, which in zip(seats, adapters, strict=True)]
        return await asyncio.gather(*running, return_exceptions=True)

    for strangers in (([one], [other]), ([one], ())):
        assert [type(end) for end in await party(*strangers)] == [Apart, Apart]
    for ran in await party([one], [one]):
        assert isinstance(ran, Run)
        assert ran.merged == 2
        torch.testing.assert_close(ran.saved["logits"], alone[0])


async def test_a_party_whose_adapter_does_not_fit_runs_apart(
    executor: MergingExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    (asked,) = wanted({"peft": "lab/adapter"})
    tensors = {"base_model.model.nowhere.lora_A.weight": torch.zeros(2, 64)}
    config = json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["nowhere"]}).encode()
    bad = seal(asked, config, safetensors.torch.save(tensors))
    payload = logits_of(client)
    ends = [run(seat, payload, tmp_path, [bad]) for seat in executor.party(2)]
    assert [type(end) for end in await asyncio.gather(*ends, return_exceptions=True)] == [Apart, Apart]
    assert "Adapter lab/adapter does not fit this model" in (await run(executor, payload, tmp_path, [bad])).error
