"""What it costs that a request cannot hurt anybody: each layer, each fork, each job, beside the same trace in process.

    python benchmarks/isolation.py [--only fork|sealing|trace|overrun ...] [--rounds 40] [--json FILE]

Prints, from one run on one machine: milliseconds to fork and seal a child with all layers, with each one left out, and
with none; fork, first touch of all weights and private memory for models of several sizes; p50 and p95 of a minimal
trace (8 tokens, one hidden state of a 124M-parameter GPT-2 with random weights) in process, in an unhardened fork and
behind every layer, in turn; and how long after its limit a runaway is dead. A trace's time goes from its payload's
bytes to its result's bytes, a runaway's from its limit to the moment at which its pidfd tells that it has ended.
"""

import argparse
import asyncio
import gc
import json
import os
import resource
import select
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import service
import torch
from nnsight import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend
from transformers import PreTrainedTokenizerFast

from interlace.protocol.job import Job, Limits
from interlace.protocol.model import ModelKey
from interlace_workers.child import trace
from interlace_workers.child.loading.model import load
from interlace_workers.child.writing import output
from interlace_workers.executors.base import Done, Failed, Printed
from interlace_workers.executors.fork import ForkExecutor
from interlace_workers.order import Load, Order
from interlace_workers.sandbox import LAYERS
from interlace_workers.weights import into_huge_pages

_PARTS = ("fork", "sealing", "trace", "overrun")
_FORKS = 15
_PARAMETERS = (50_000_000, 200_000_000, 500_000_000)


class Capture(Backend):  # type: ignore[misc]
    payload = b""

    def __call__(self, tracer: Any) -> None:
        self.payload = RequestModel.serialize(tracer, True)


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
    job = _job(payload, Limits())
    private = 0
    child = await executor._spare.sealed() if executor._spare else None
    async for happening in executor.run(job, payload, result):
        if isinstance(happening, Done) and child is not None:
            private = _private(child.memory)
        elif not isinstance(happening, Done):
            continue
    return private


def _job(payload: bytes, limits: Limits) -> Job:
    key = ModelKey(repo_id=service.GPT2)
    return Job(
        id="0" * 32, tenant="a", model=key, compress=True, limits=limits, payload_bytes=len(payload), submitted_at=0.0
    )


def _private(rollup: int) -> int:
    lines = os.pread(rollup, 4096, 0).splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(b"Private_"))


#: What a job does that shall not end by itself.
_RUNAWAYS = {
    "a Python loop": "while True:\n    pass",
    "one C call": "sum(range(10**12))",
    "signals blocked and ignored, exceptions swallowed": """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
""",
}
#: They say how much they hold, MiB by MiB, and when; the clock is the machine's. The second goes on when no more is to
#: be had; the third writes to the model's own pages, which no limit of the kernel's counts.
_HOARDERS = {
    "new memory": """
hoard = []
while True:
    hoard.append(b"x" * PIECE)
    tell(len(hoard))
""",
    "new memory, refusals swallowed": """
hoard = []
while True:
    try:
        hoard.append(b"x" * PIECE)
        tell(len(hoard))
    except BaseException:
        pass
""",
    "the model's pages": """
filled = 0
for weight in weights:
    values = weight.data.view(-1)
    for at in range(0, len(values), PIECE // 4):
        values[at : at + PIECE // 4] += 1
        filled += 1
        tell(filled)
""",
}
_TELL = """
import time
PIECE = 64 << 10
def tell(pieces):
    if pieces % 16 == 0:
        print("holds", pieces * PIECE, time.monotonic(), flush=True)
"""
_RUNAWAY_SECONDS = 0.5
_HOARD_BYTES = 128 << 20


async def overrun(folder: Path) -> dict[str, Any]:
    """How long after its limit a runaway is dead, and how much a hoarder holds by then."""
    executor = ForkExecutor(order_of(folder, "required"))
    await executor.start()
    found: dict[str, Any] = {}
    try:
        for name, source in _RUNAWAYS.items():
            ends = [await _overrun(executor, folder, source, Limits(wall_seconds=_RUNAWAY_SECONDS))
                    for _ in range(_RUNAWAY_ROUNDS)]  # fmt: skip
            found[name] = _late([end["late"] for end in ends]) | {"said": ends[0]["said"]}
        for name, source in _HOARDERS.items():
            limits = Limits(wall_seconds=5, memory_bytes=_HOARD_BYTES)
            ends = [await _overrun(executor, folder, _TELL + source, limits) for _ in range(_RUNAWAY_ROUNDS)]
            over = [end["held"] - _HOARD_BYTES for end in ends]
            found[name] = _late([end["dead"] - end["full"] for end in ends if end["full"] is not None]) | {
                "over_mib_p50": round(statistics.median(over) / (1 << 20), 1),
                "over_mib_max": round(max(over) / (1 << 20), 1),
                "said": ends[0]["said"],
            }
    finally:
        await executor.stop()
    return found


#: Of each kind.
_RUNAWAY_ROUNDS = 10


def _late(seconds: list[float]) -> dict[str, float]:
    """Of those that reached their limit: how many, and p50 and max in milliseconds."""
    if not seconds:
        return {"reached": 0}
    milliseconds = [round(1000 * one, 1) for one in seconds]
    return {"reached": len(seconds), "p50_ms": round(statistics.median(milliseconds), 1), "max_ms": max(milliseconds)}


async def _overrun(executor: ForkExecutor, folder: Path, source: str, limits: Limits) -> dict[str, Any]:
    """Run one job: when it was dead and how late that was; how much it held by its own account, and when too much."""
    payload, result = _runaway(folder, source), folder / "result"
    result.write_bytes(b"")
    assert executor._spare is not None
    child = await executor._spare.sealed()
    pidfd = os.dup(child.pidfd)
    dying = asyncio.create_task(asyncio.to_thread(_died_at, pidfd))
    held, full, said = 0, None, ""
    started = time.monotonic()  # the executor takes its own time a moment later
    async for happening in executor.run(_job(payload, limits), payload, result):
        if isinstance(happening, Printed):
            for line in happening.lines:
                held, moment = int(line.split()[1]), line.split()[2]
                if held >= limits.memory_bytes and full is None:
                    full = float(moment)
        elif isinstance(happening, Failed):
            said = happening.text.strip().splitlines()[-1]
    dead = await dying
    os.close(pidfd)
    await asyncio.sleep(0.3)  # the next child is forked ahead
    return {"late": dead - started - limits.wall_seconds, "full": full, "dead": dead, "held": held, "said": said}


def _died_at(pidfd: int) -> float:
    """Wait for a process to end, with all that it started; the moment."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    waiting.poll()
    return time.monotonic()


def _runaway(folder: Path, source: str) -> bytes:
    backend = Capture()
    client = TransformersModel(str(folder), task="text-generation", tokenizer=_tokenizer(folder))
    with client.trace(torch.arange(100, 108)[None], backend=backend):
        layers = [layer for block in client.transformer.h for layer in (block.mlp.c_fc, block.mlp.c_proj)]
        weights = [layer.weight for layer in (client.transformer.wte, *layers)]
        exec(source, {"weights": weights})  # noqa: S102 - it shall be as hostile as it can
        logits = client.lm_head.output.save()
    return backend.payload


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS, help="default: all of them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = service.circumstances()
    if "fork" in arguments.only:
        figures["fork"] = {
            f"{count // 10**6}M, {'2 MiB' if huge else '4 KiB'} pages": forks(count, huge)
            for count in _PARAMETERS
            for huge in (False, True)
        }
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        service.write_gpt2(folder)
        if "sealing" in arguments.only:
            figures["sealing"] = asyncio.run(sealing(folder))
        if "trace" in arguments.only:
            figures["trace"] = asyncio.run(traces(folder, arguments.rounds))
        if "overrun" in arguments.only:
            figures["overrun"] = asyncio.run(overrun(folder))
    figures["own_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
