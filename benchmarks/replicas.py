"""One replica and two on the same cores: jobs a second, what is lost to the parts between, and a prediction of both.

    python benchmarks/replicas.py [--runtime process|ray] [--jobs 24] [--tokens 8 128] [--json FILE]

SmolLM2-135M-Instruct, one thread for each job. For each length so many traces, which save one hidden state, are queued
while the model is paused; then it is resumed, and the clock runs from there to the last job's end, so that no client's
work is in the figure. The same traces are run by plain nnsight in one process and in two at a time. From what a job of
the first length costs beside its forward with one replica, all other figures are predicted: see docs/scaling.md.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import service

from interlace.protocol.model import ModelKey
from interlace_state.config import Config, ModelConfig
from interlace_state.store import State, open_state

MODEL = "smollm2-135m-instruct"
REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
LAYER = 15
_LOOK = 0.01  # seconds


def local(path: str, tokens: list[int], jobs: int, ready: Any, answers: Any) -> None:
    """Seconds of a trace by length, in this process, while its siblings do the same."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from nnsight import TransformersModel
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = TransformersModel(path, task="text-generation", tokenizer=tokenizer, dtype=torch.float32, dispatch=True)

    def trace(length: int) -> None:
        with torch.no_grad(), model.trace(torch.arange(100, 100 + length)[None]):
            model.model.layers[LAYER].output.save()

    found = {}
    for length in tokens:
        for _ in range(3):
            trace(length)
        ready.wait()
        begun = time.perf_counter()
        for _ in range(jobs):
            trace(length)
        found[length] = (time.perf_counter() - begun) / jobs
    answers.put(found)


def locally(path: str, tokens: list[int], jobs: int, processes: int) -> dict[int, float]:
    """Jobs a second by length, of so many processes together."""
    spawn = multiprocessing.get_context("spawn")
    ready, answers = spawn.Barrier(processes), spawn.Queue()
    running = [spawn.Process(target=local, args=(path, tokens, jobs, ready, answers)) for _ in range(processes)]
    for one in running:
        one.start()
    found = [answers.get() for _ in running]
    for one in running:
        one.join()
    return {length: sum(1 / one[length] for one in found) for length in tokens}


def client(url: str, home: Path, jobs: int, lengths: Any, posted: Any) -> None:
    """A stock client: queue the jobs of each length that comes; None is the end."""
    os.environ["NNSIGHT_CONFIG"] = os.devnull
    service.stock_client(url, home)
    import torch
    from nnsight import TransformersModel
    from nnsight.intervention.backends.remote import RemoteBackend

    model = TransformersModel(REPO, task="text-generation")
    while (length := lengths.get()) is not None:
        for _ in range(jobs):
            backend = RemoteBackend(model.to_model_key(), env=model._remoteable_get_env(), blocking=False)
            with model.trace(torch.arange(100, 100 + length)[None], backend=backend):
                model.model.layers[LAYER].output.save()
        posted.put(length)


async def drained(state: State, key: ModelKey, jobs: int) -> float:
    """Resume the model; seconds until all of its jobs have ended."""
    assert await state.queue.length(key) == jobs
    await state.control.resume(key)
    begun = time.perf_counter()
    while await state.queue.length(key):
        await asyncio.sleep(_LOOK)
    return time.perf_counter() - begun


async def remotely(
    server: service.Service, home: Path, tokens: list[int], jobs: int, replicas: int
) -> dict[int, float]:
    spawn = multiprocessing.get_context("spawn")
    lengths, posted = spawn.Queue(), spawn.Queue()
    clients = spawn.Process(target=client, args=(server.url, home, jobs, lengths, posted))
    clients.start()
    found = {}
    async with open_state(server.config) as state:
        [hosted] = await state.models.all()
        key = hosted.card.key
        while len((await state.models.find(key)).replicas) < replicas or any(
            one.state != "ready" for one in (await state.models.find(key)).replicas
        ):
            await asyncio.sleep(0.2)
        for number, length in enumerate([tokens[0], *tokens]):  # the first warms up
            await state.control.pause(key)
            await asyncio.sleep(1.5)  # whoever asked before has his answer
            lengths.put(length)
            await asyncio.to_thread(posted.get)
            seconds = await drained(state, key, jobs)
            if number:
                found[length] = jobs / seconds
    lengths.put(None)
    clients.join()
    return found


def memory(pid: int) -> dict[str, float]:
    """Proportional MiB of the service's parts, by what they are."""
    parts: dict[str, float] = {}
    for one in psutil.Process(pid).children(recursive=True):
        try:
            words = " ".join(one.cmdline()) or one.name()
            names = (
                "interlace_workers.zygote",
                "replica_process",
                "interlace_server",
                "interlace_workers",
                "ServeReplica",
            )
            name = next((name for name in names if name in words), "ray" if "ray" in words else "redis")
            parts[name] = parts.get(name, 0.0) + one.memory_full_info().pss / (1 << 20)
        except psutil.Error:
            continue
    return {name: round(mib) for name, mib in parts.items()}


def predicted(forward: dict[int, dict[int, float]], measured: dict[int, dict[int, float]]) -> tuple[float, Any]:
    """Seconds that a job costs beside its forward, and from these what every other figure should be.

    Both by processes or replicas, then by length, in jobs a second. Two forwards at a time are as slow as they are
    locally; what a job costs beside it becomes slower by the same factor.
    """
    first = min(forward[1])
    beside = 1 / measured[1][first] - 1 / forward[1][first]
    found = {}
    for count in measured:
        for length in forward[1]:
            factor = count * forward[1][length] / forward[count][length]
            found[count, length] = count / ((1 / forward[1][length] + beside) * factor)
    return beside, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=("ray", "process"), default="process")
    parser.add_argument("--jobs", type=int, default=24, help="traces of each length")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 128])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    from interlace_workers.sources import resolve  # not sooner: it reads where the hub is, see `service.stock_client`

    path = str(resolve(ModelConfig(source=MODEL), Config().cache_dir, print).path)
    forward = {count: locally(path, arguments.tokens, arguments.jobs // count, count) for count in (1, 2)}
    measured, held = {}, {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            folder = Path(name)
            configuration = {
                "runtime": arguments.runtime,
                "models": [{"source": MODEL, "threads": 1, "replicas": count}],
            }
            with service.running(folder, configuration) as server:
                measured[count] = asyncio.run(remotely(server, folder / "hf", arguments.tokens, arguments.jobs, count))
                held[count] = memory(server.process.pid)
    beside, expected = predicted(forward, measured)
    print(f"{'':28}{'plain nnsight':>15}{'remote':>10}{'share':>8}{'predicted':>11}   jobs a second")
    for count in (1, 2):
        for length in arguments.tokens:
            plain, remote = forward[count][length], measured[count][length]
            print(
                f"{count} at a time, {length:>4} tokens    {plain:>13.2f}{remote:>10.2f}{remote / plain:>8.2f}"
                f"{expected[count, length]:>11.2f}"
            )
    print(f"a job costs {1000 * beside:.1f} ms beside its forward ({arguments.runtime})")
    for count in (1, 2):
        print(f"proportional MiB with {count}: {held[count]}")
    if arguments.json:
        figures = service.circumstances() | {
            "runtime": arguments.runtime,
            "plain_a_second": forward,
            "remote_a_second": measured,
            "predicted_a_second": {f"{count}x{length}": value for (count, length), value in expected.items()},
            "beside_seconds": beside,
            "proportional_mib": held,
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
