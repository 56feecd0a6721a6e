"""One replica and two on the same cores: jobs a second, what is lost to the parts between, and a prediction of both.

    python benchmarks/replicas.py [--runtime process|ray] [--jobs 12] [--rounds 3] [--tokens 8 128] [--json FILE]

SmolLM2-135M-Instruct, one thread for each job, on a server with one replica and on one with two. For each length so
many traces, which save one hidden state, are queued while the model is paused; then it is resumed, and the clock runs
from the first job's end to the last's, so that no client's work is in the figure. Between these, plain nnsight runs
the same traces in one process and in two at a time: all in turn, so that a machine that has other work has it for all.
From what a job of the first length costs beside its forward with one replica, all else is predicted (docs/scaling.md).
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import service

from interlace_state.config import Config
from interlace_state.settings.models import ModelConfig
from interlace_state.store import open_state

MODEL = "smollm2-135m-instruct"
REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
LAYER = 15
_LOOK = 0.01  # seconds


def local(path: str, orders: Any, answers: Any) -> None:
    """Plain nnsight: takes orders of a length and a count, answers with the seconds of a trace; None is the end."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from nnsight import TransformersModel
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = TransformersModel(path, task="text-generation", tokenizer=tokenizer, dtype=torch.float32, dispatch=True)
    while (order := orders.get()) is not None:
        length, jobs = order
        begun = time.perf_counter()
        for _ in range(jobs):
            with torch.no_grad(), model.trace(torch.arange(100, 100 + length)[None]):
                model.model.layers[LAYER].output.save()
        answers.put((time.perf_counter() - begun) / jobs)


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


class Remote:
    """A server, and a stock client that fills its queue."""

    def __init__(self, server: service.Service, home: Path, jobs: int) -> None:
        self._config = server.config
        self._jobs = jobs
        spawn = multiprocessing.get_context("spawn")
        self._lengths, self._posted = spawn.Queue(), spawn.Queue()
        self._client = spawn.Process(
            target=client, args=(server.url, home, jobs, self._lengths, self._posted), daemon=True
        )
        self._client.start()

    async def rate(self, length: int) -> float:
        """Jobs a second, from the end of the first of them to the end of the last."""
        async with open_state(self._config) as state:
            [hosted] = await state.models.all()
            key = hosted.card.key
            while len((hosted := await state.models.find(key)).replicas) < (hosted.wanted or 0) or any(
                one.state != "ready" for one in hosted.replicas
            ):
                await asyncio.sleep(_LOOK)
            await state.control.pause(key)
            await asyncio.sleep(1.5)  # whoever asked before has his answer
            self._lengths.put(length)
            await asyncio.to_thread(self._posted.get)
            await state.control.resume(key)  # a replica looks once a second whether it may go on
            while (left := await state.queue.length(key)) == self._jobs:
                await asyncio.sleep(_LOOK)
            begun = time.perf_counter()
            while await state.queue.length(key):
                await asyncio.sleep(_LOOK)
            return left / (time.perf_counter() - begun)


def measure(servers: list[service.Service], folder: Path, path: str, arguments: argparse.Namespace) -> Any:
    """Plain and remote jobs a second, by how many at a time and length: medians of rounds that take all in turn."""
    spawn = multiprocessing.get_context("spawn")
    orders, answers = [spawn.Queue(), spawn.Queue()], spawn.Queue()
    workers = [spawn.Process(target=local, args=(path, one, answers), daemon=True) for one in orders]
    for worker in workers:
        worker.start()
    remotes = [Remote(server, folder / f"hf-{number}", arguments.jobs) for number, server in enumerate(servers)]
    plain: dict[int, dict[int, list[float]]] = {1: {}, 2: {}}
    remote: dict[int, dict[int, list[float]]] = {1: {}, 2: {}}
    for number in range(1 + arguments.rounds):  # the first warms up
        for length in arguments.tokens:
            for count in (1, 2):
                for one in orders[:count]:
                    one.put((length, arguments.jobs // 2))
                here = sum(1 / answers.get() for _ in range(count))
                there = asyncio.run(remotes[count - 1].rate(length))
                if number:
                    plain[count].setdefault(length, []).append(here)
                    remote[count].setdefault(length, []).append(there)
    middle = [
        {count: {length: statistics.median(some) for length, some in rates.items()} for count, rates in found.items()}
        for found in (plain, remote)
    ]
    return middle


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
    parser.add_argument("--jobs", type=int, default=12, help="traces of each length in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 128])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    from interlace_workers.sources.resolving import (
        resolve,  # not sooner: it reads where the hub is, see `service.stock_client`
    )

    path = str(resolve(ModelConfig(source=MODEL), Config().cache_dir, print).path)
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        servers = []
        for count in (1, 2):
            folder = Path(name) / str(count)
            folder.mkdir()
            models = [{"source": MODEL, "threads": 1, "replicas": count}]
            configuration = {"runtime": arguments.runtime, "models": models, "batching": {"enabled": False}}
            servers.append(stack.enter_context(service.running(folder, configuration)))
        forward, measured = measure(servers, Path(name), path, arguments)
        held = {count: memory(server.process.pid) for count, server in zip((1, 2), servers, strict=True)}
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
