"""Stock nnsight in a process of its own against the real gateway; the worker's part is played through the state."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gateway_process import KEY, Gateway, Worker, saved
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, PreTrainedTokenizerFast

PREAMBLE = """
import asyncio, json, nnsight, torch
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteBackend, RemoteError
from nnsight.modeling.transformers import TransformersModel
model = TransformersModel("lab/tiny", task="text-generation")
def show(**values):
    print("SHOWN", json.dumps(values))
"""


@pytest.fixture
async def client(gateway: Gateway, worker: Worker, tmp_path: Path) -> Callable[[str], Awaitable[dict[str, Any]]]:
    """Runs a client's code; returns what it shows."""
    folder = tmp_path / "tiny"
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>").save_pretrained(folder)
    config = GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder)
    for path in folder.iterdir():
        await worker.state.models.put_file(KEY, path.name, path.read_bytes())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "NDIF_"))}
    environment |= {
        "HF_ENDPOINT": f"{gateway.url}/hf",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NDIF_HOST": gateway.url,
        "OMP_NUM_THREADS": "1",
        # Nothing but the gateway can be reached.
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "no_proxy": "127.0.0.1",
    }

    async def run(code: str) -> dict[str, Any]:
        script = tmp_path / "client.py"
        script.write_text(PREAMBLE + code)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            env=environment,
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), 280)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, err.decode()
        shown = [line.removeprefix("SHOWN ") for line in out.decode().splitlines() if line.startswith("SHOWN ")]
        found: dict[str, Any] = json.loads(shown[-1])
        return found

    return run


async def test_blocking(client: Any, worker: Worker) -> None:
    """A result, then a failure of the user's code, then a request that is not taken."""
    code = """
with model.trace("a b", remote=True) as tracer:
    hidden = model.lm_head.output.save()
shown = dict(hidden=hidden.tolist(), meta=tracer.backend.meta, texts=[])
absent = RemoteBackend(model.to_model_key().replace("lab/tiny", "lab/absent"))
for backend in (RemoteBackend(model.to_model_key()), absent):
    try:
        with model.trace("a b", backend=backend):
            hidden = model.lm_head.output.save()
    except RemoteError as error:
        shown["texts"].append(str(error))
        shown.setdefault("failed", backend.meta)
show(**shown)
"""
    running = asyncio.create_task(client(code))
    lease = await worker.start()
    assert lease.job.compress
    assert lease.job.env == {"attn_implementation": "sdpa"}
    await worker.log(lease, "hello")
    await worker.complete(lease, saved(hidden=torch.tensor([1.5, 2.5])))
    await worker.end(await worker.start(), "line 7: ValueError: no")
    shown = await running
    assert shown["hidden"] == [1.5, 2.5]
    assert shown["meta"]["runtime"] == 1.2346
    assert shown["failed"]["runtime"] == 0.5
    assert shown["texts"] == [
        "line 7: ValueError: no",
        "Failed to send request: This server does not host lab/absent (text-generation). "
        "Hosted models: lab/tiny (text-generation). "
        "Use one of these ids, or ask the operator to add yours (`interlace up --model ...`).",
    ]


async def test_non_blocking(client: Any, worker: Worker) -> None:
    code = """
import time
backend = RemoteBackend(model.to_model_key(), blocking=False)
with model.trace("a b", backend=backend):
    hidden = model.lm_head.output.save()
first = backend.status.value
while (result := backend()) is None:
    time.sleep(0.05)
show(first=first, last=backend.status.value, hidden=result["hidden"].tolist(), meta=backend.meta)
"""
    running = asyncio.create_task(client(code))
    lease = await worker.start()
    assert lease.job.session_id == ""
    await worker.complete(lease, saved(hidden=torch.tensor([3])))
    shown = await running
    assert (shown["first"], shown["last"], shown["hidden"]) == ("RECEIVED", "COMPLETED", [3])
    assert shown["meta"]["cpu_seconds"] == 1.1


async def test_async_awaited_and_iterated(client: Any, worker: Worker) -> None:
    code = """
def send():
    backend = AsyncRemoteBackend(model.to_model_key())
    with model.trace("a b", backend=backend):
        hidden = model.lm_head.output.save()
    return backend
async def main():
    first, second = send(), send()
    awaited = await first
    iterated = [update if isinstance(update, dict) else update.status.value async for update in second]
    show(awaited=awaited["hidden"].tolist(), statuses=iterated[:-1], last=iterated[-1]["hidden"].tolist())
asyncio.run(main())
"""
    running = asyncio.create_task(client(code))
    for number in (1, 2):
        await worker.complete(await worker.start(), saved(hidden=torch.tensor([number])))
    assert await running == {
        "awaited": [1],
        "statuses": ["QUEUED", "DISPATCHED", "RUNNING", "COMPLETED"],
        "last": [2],
    }


async def test_the_tables_of_stock_nnsight(client: Any, worker: Worker) -> None:
    await worker.state.models.publish_environment({"python_version": "3.11.0", "packages": {"torch": "0.0.1"}})
    code = """
comparison = nnsight.compare()
show(
    running=nnsight.is_model_running("lab/tiny"),
    absent=nnsight.is_model_running("lab/tiny", revision="v2"),
    table=str(nnsight.status()),
    entry=nnsight.status()["lab/tiny"],
    critical=sorted(comparison.critical_mismatches),
    who=nnsight.whoami(),
)
"""
    code = code.replace("nnsight.compare", "nnsight.ndif.compare").replace("nnsight.whoami", "nnsight.ndif.whoami")
    shown = await client(code)
    assert (shown["running"], shown["absent"]) == (True, False)
    assert "NDIF Service: Up" in shown["table"]
    assert (shown["entry"]["state"], shown["entry"]["hot_replicas"]) == ("RUNNING", 1)
    assert shown["critical"] == ["torch"]
    assert shown["who"] == {"email": None, "tags": []}
