"""What it costs that a request cannot hurt anybody: each layer, each fork, each job, beside the same trace in process.

    python benchmarks/isolation.py [--rounds 40] [--json FILE]

Prints, from one run on one machine: milliseconds to fork and seal a child with all layers, with each one left out, and
with none; fork, first touch of all weights and private memory for models of several sizes; and p50 and p95 of a minimal
trace (8 tokens, one hidden state of a 124M-parameter GPT-2 with random weights) in process, in an unhardened fork and
behind every layer, in turn. A trace's time goes from its payload's bytes to its result's bytes.
"""

import argparse
import asyncio
import gc
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnsight import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interlace.protocol.job import Job, Limits
from interlace.protocol.model import ModelKey
from interlace_workers.child import output, trace
from interlace_workers.child.model import load
from interlace_workers.executors.base import Done
from interlace_workers.executors.fork import ForkExecutor
from interlace_workers.order import Load, Order
from interlace_workers.sandbox import LAYERS
from interlace_workers.weights import into_huge_pages

_FORKS = 15
_PARAMETERS = (50_000_000, 200_000_000, 500_000_000)


class Capture(Backend):  # type: ignore[misc]
    payload = b""

    def __call__(self, tracer: Any) -> None:
        self.payload = RequestModel.serialize(tracer, True)


def write_model(folder: Path) -> None:
    """GPT-2 small with random weights: 124M parameters in fp32."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[UNK]").save_pretrained(folder)
    GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)).save_pretrained(folder)


def order_of(folder: Path, isolation: str, without: tuple[str, ...] = ()) -> Load:
    return Load(str(folder), "text-generation", "float32", False, 1, isolation=isolation, without=without)


def summary(seconds: list[float]) -> dict[str, float]:
    """p50 and p95 in milliseconds."""
    p95 = statistics.quantiles(seconds, n=20)[-1]
    return {"p50_ms": round(1000 * statistics.median(seconds), 2), "p95_ms": round(1000 * p95, 2)}


async def sealing(folder: Path) -> dict[str, dict[str, float]]:
    """Time from asking for a child to having it sealed, by which layers it has."""
    found = {}
    executors = {"all": order_of(folder, "required"), "none": order_of(folder, "none")}
    executors |= {f"all but {name}": order_of(folder, "available", (name,)) for name in LAYERS if name in _APART}
    for name, order in executors.items():
        executor = ForkExecutor(order)
        await executor.start()
        assert executor._zygote is not None
        times = []
        for _ in range(_FORKS):
            started = time.perf_counter()
            child = await executor._zygote.fork()
            times.append(time.perf_counter() - started)
            child.kill()
            child.close()
        found[name] = summary(times)
        await executor.stop()
    return found


#: Layers that a child can be sealed without: the others need `no new privileges`, or cost nothing to speak of.
_APART = frozenset({"network namespace", "ipc namespace", "mount namespace", "process id namespace", "own user id",
                    "user namespace", "landlock", "seccomp"})  # fmt: skip


def forks(parameters: int, huge: bool) -> dict[str, float]:
    """Fork of a process with so many weights; then a child that reads them all, and one that writes a hundredth."""
    module = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(1 << 20)) for _ in range(parameters >> 20)])
    if huge:
        into_huge_pages(module)
    gc.collect()
    gc.freeze()
    took, first = [], []
    for _ in range(5):
        reading, writing = os.pipe()
        started = time.perf_counter()
        if (pid := os.fork()) == 0:
            before = time.perf_counter()
            for parameter in module:
                float(parameter.sum())
            os.write(writing, str(time.perf_counter() - before).encode())
            os._exit(0)
        took.append(time.perf_counter() - started)
        first.append(float(os.read(reading, 64)))
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)
    return {
        "fork_ms": round(1000 * statistics.median(took), 2),
        "read_all_ms": round(1000 * statistics.median(first), 2),
    }


async def traces(folder: Path, rounds: int) -> dict[str, Any]:
    """A minimal trace in process, in an unhardened fork, behind every layer, in turn."""
    backend = Capture()
    client = TransformersModel(str(folder), task="text-generation", tokenizer=_tokenizer(folder))
    tokens = torch.arange(100, 108)[None]
    with client.trace(tokens, backend=backend):
        hidden = client.transformer.h[6].output.save()
    hosted = load(order_of(folder, "none"))
    hardened, bare = ForkExecutor(order_of(folder, "required")), ForkExecutor(order_of(folder, "none"))
    await hardened.start()
    await bare.start()
    result = folder / "result"
    ways: dict[str, Callable[[], Any]] = {
        "in process": lambda: _in_process(hosted, backend.payload, result),
        "unhardened fork": lambda: _in_child(bare, backend.payload, result),
        "required": lambda: _in_child(hardened, backend.payload, result),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    private: list[int] = []
    for number in range(rounds + 3):
        for name, way in ways.items():
            started = time.perf_counter()
            held = await way()
            if number >= 3:
                times[name].append(time.perf_counter() - started)
                if name == "required":
                    private.append(held)
            await asyncio.sleep(0.3)  # the next child is forked ahead
    await hardened.stop()
    await bare.stop()
    base = statistics.median(times["in process"])
    found: dict[str, Any] = {name: summary(taken) for name, taken in times.items()}
    found["added_p50_ms"] = {name: round(1000 * (statistics.median(taken) - base), 2) for name, taken in times.items()}
    found["private_mib"] = round(statistics.median(private) / (1 << 20), 1)
    return found


async def _in_process(hosted: Any, payload: bytes, result: Path) -> int:
    source = os.memfd_create("payload")
    os.write(source, payload)
    os.lseek(source, 0, os.SEEK_SET)
    order = Order(compress=True, unpacked_bytes=1 << 30, result_bytes=1 << 30)
    saved = trace.run(hosted, trace.read(hosted, order, source))
    output.write(saved, os.open(result, os.O_RDWR | os.O_CREAT), order)
    return 0


async def _in_child(executor: ForkExecutor, payload: bytes, result: Path) -> int:
    result.write_bytes(b"")
    job = Job(
        id="0" * 32,
        tenant="local",
        model=ModelKey(repo_id="benchmark/gpt2"),
        compress=True,
        limits=Limits(),
        payload_bytes=len(payload),
        submitted_at=0.0,
    )
    private = 0
    child = await executor._spare if executor._spare else None
    async for happening in executor.run(job, payload, result):
        if isinstance(happening, Done) and child is not None:
            private = _private(child.memory)
        elif not isinstance(happening, Done):
            continue
    return private


def _private(rollup: int) -> int:
    lines = os.pread(rollup, 4096, 0).splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(b"Private_"))


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"command": " ".join(sys.argv), "load": os.getloadavg()}
    figures["fork"] = {
        f"{count // 10**6}M, {'2 MiB' if huge else '4 KiB'} pages": forks(count, huge)
        for count in _PARAMETERS
        for huge in (False, True)
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        write_model(folder)
        figures["sealing"] = asyncio.run(sealing(folder))
        figures["trace"] = asyncio.run(traces(folder, arguments.rounds))
    figures["own_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
