"""The fork executor's jobs in control groups. Needs what `test_cgroup.py` says."""

import asyncio
import io
import os
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
import zstandard
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interlace.protocol.job import Job, Limits
from interlace.protocol.model import ModelKey
from interlace_workers.executors import cgroup
from interlace_workers.executors.base import Done, Failed, Happening, Started
from interlace_workers.executors.fork import ForkExecutor
from interlace_workers.order import Load

MIB = 1 << 20
LIMIT = 64 * MIB
FOLDER, SAID = cgroup.delegated()
needs_groups = pytest.mark.skipif(FOLDER is None, reason=f"this machine gives no control groups to us: {SAID}")


def jobs() -> list[Path]:
    """Those of this process; others on the machine may have theirs."""
    assert FOLDER is not None
    return sorted(FOLDER.glob(f"interlace-job-{os.getpid()}-*"))


class Capture(Backend):  # type: ignore[misc]
    """Serializes a trace as the stock client does, and keeps it."""

    payload = b""

    def __call__(self, tracer: Any) -> None:
        self.payload = RequestModel.serialize(tracer, True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 128 MiB, nearly all of it its words: who writes to these has copies of its own."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[UNK]").save_pretrained(path)
    config = GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=(128 * MIB) // 256, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> TransformersModel:
    return TransformersModel(str(folder), task="text-generation", tokenizer=AutoTokenizer.from_pretrained(folder))


@pytest_asyncio.fixture
async def executor(folder: Path) -> AsyncIterator[ForkExecutor]:
    before = jobs()
    executor = ForkExecutor(Load(str(folder), "text-generation", "float32", trust_remote_code=False, threads=1))
    await executor.start()
    yield executor
    await executor.stop()
    assert jobs() == before, "groups are left"


async def ends(executor: ForkExecutor, payload: bytes, result: Path) -> tuple[Happening, list[Path]]:
    """How a job with a limit of 64 MiB ends, and the groups with processes in them at its start."""
    key, limits = ModelKey(repo_id="tests/model"), Limits(memory_bytes=LIMIT)
    env = {"attn_implementation": "sdpa"}
    job = Job(
        id=secrets.token_hex(16),
        tenant="local",
        model=key,
        compress=True,
        env=env,
        limits=limits,
        payload_bytes=len(payload),
        submitted_at=time.time(),
    )
    result.write_bytes(b"")
    filled: list[Path] = []
    async for happening in executor.run(job, payload, result):
        if isinstance(happening, Started):
            filled = [group for group in jobs() if (group / "memory.max").read_text() != "max\n"]
    for _ in range(1200):
        if not [group for group in filled if group.exists()]:
            break
        await asyncio.sleep(0.05)
    return happening, filled


@needs_groups
@pytest.mark.asyncio
async def test_jobs_of_the_executor_are_in_groups(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    hungry = Capture()
    with client.trace("the cat", backend=hungry):
        # Little by little, as no limit of the address space sees: each line written to is a copy of its own.
        for line in client.transformer.wte.weight.data.split(256):
            line += 1
        hidden = client.transformer.h[0].output.save()
    honest = Capture()
    with client.trace("the cat", backend=honest):
        hidden = client.transformer.h[0].output.save()
    for _ in range(2):
        end, filled = await ends(executor, hungry.payload, tmp_path / "result")
        assert isinstance(end, Failed), end
        assert "67,108,864 bytes" in end.text
        assert "limits.memory_bytes" in end.text
        assert (end.reason, end.crashed) == ("memory_bytes", False)
        assert len(filled) == 1
        assert not filled[0].exists()
        end, filled = await ends(executor, honest.payload, tmp_path / "result")
        assert isinstance(end, Done), end
        saved = torch.load(io.BytesIO(zstandard.decompress((tmp_path / "result").read_bytes())), weights_only=False)
        assert saved["hidden"].shape == (1, 2, 64)
        assert len(filled) == 1
        assert not filled[0].exists()
