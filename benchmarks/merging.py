"""What many small traces of one tenant cost together: merged into forwards, one at a time, and batched by hand.

    python benchmarks/merging.py [--clients 32] [--processes 4] [--seconds 6] [--whole] [--threads 1] [--json FILE]

SmolLM2-135M-Instruct in fp32, prompts of 8 tokens. Each saves one hidden state, from the middle of the model: a merged
forward ends there, as nobody waits for the rest, while one by hand goes on to the logits (`--whole` saves these).

First plain nnsight in this machine's best light: the same prompts batched by hand in one trace, 1, 8 and 32 at a time,
with nothing else running. Then stock clients (threads in several processes, each opens its trace anew for each request,
as users do) against one server: as a tenant that has `batching: off`, and as one that has not; and our own client for
the latter (`ours`). They run on the same cores, and what they cost is printed beside what they got. At last the same
jobs queued at once while the model is paused, and run with no client on the machine.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import service

from interlace import Client

MODEL = "smollm2-135m-instruct"
REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
LAYER = 15
TOKENS = 8
BATCHES = (1, 8, 32)
#: By what is in their command; the first that fits (a sandbox's names Redis, too).
PARTS = {
    "interlace_workers.zygote": "sandboxes",
    "interlace_server": "gateway",
    "valkey": "redis",
    "redis": "redis",
    "replica_process": "replica",
}


def prompts(count: int) -> Any:
    import torch

    return torch.randint(100, 20_000, (count, TOKENS))


def by_hand(threads: int, seconds: float, whole: bool, say: Connection) -> None:
    """Requests a second of plain nnsight, by batch size. A process of its own: it holds weights."""
    import torch
    from nnsight import TransformersModel
    from transformers import AutoTokenizer

    from interlace_state.config import Config
    from interlace_state.settings.models import ModelConfig
    from interlace_workers.sources.resolving import resolve

    torch.set_num_threads(threads)
    path = str(resolve(ModelConfig(source=MODEL), Config().cache_dir, print).path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = TransformersModel(path, task="text-generation", tokenizer=tokenizer, dtype=torch.float32, dispatch=True)

    def trace(tokens: Any) -> None:
        with model.trace(tokens):
            value = (model.lm_head.output[:, -1] if whole else model.model.layers[LAYER].output).save()

    rates = {}
    for size in BATCHES:
        trace(prompts(size))
        begun, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < seconds:
            trace(prompts(size))
            done += size
        rates[size] = round(done / spent, 2)
    say.send(rates)


def client(url: str, home: Path, threads: int, whole: bool, orders: Connection) -> None:
    """Clients, one a thread. For each (key, seconds, whether ours) that is ordered: latencies and CPU seconds."""
    service.stock_client(url, home)
    from nnsight import CONFIG, TransformersModel

    models = [TransformersModel(REPO, task="text-generation") for _ in range(threads)]

    def loop(model: Any, until: float) -> list[tuple[float, int]]:
        found = []
        while (begun := time.perf_counter()) < until:
            with model.trace(prompts(1), remote=True) as tracer:
                value = (model.lm_head.output[:, -1] if whole else model.model.layers[LAYER].output).save()
            assert value.shape == ((1, 49152) if whole else (1, TOKENS, 576))
            found.append((time.perf_counter() - begun, (tracer.backend.meta or {}).get("merged") or 1))
        return found

    with ThreadPoolExecutor(threads) as pool:
        orders.send("ready")
        while order := orders.recv():
            CONFIG.API.APIKEY, seconds, ours = order
            with contextlib.ExitStack() as stack:
                if ours:
                    stack.enter_context(stack.enter_context(Client(url, CONFIG.API.APIKEY)).installed())
                cpu = time.process_time()
                until = time.perf_counter() + seconds
                found = [one for mine in pool.map(loop, models, [until] * threads) for one in mine]
            orders.send((found, time.process_time() - cpu))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    spawn = multiprocessing.get_context("spawn")
    heard, say = spawn.Pipe()
    reference = spawn.Process(target=by_hand, args=(arguments.threads, arguments.seconds / 4, arguments.whole, say))
    reference.start()
    figures: dict[str, Any] = {"by_hand": heard.recv()}
    reference.join()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        configuration = {
            "runtime": "process",
            "models": [{"source": MODEL, "threads": arguments.threads}],
            "tenants": {"apart": {"batching": False}},
        }
        with service.running(folder, configuration) as server:
            keys = {"off": server.key("apart"), "on": server.key("together")}
            each = arguments.clients // arguments.processes
            pipes = []
            processes = []
            for _ in range(arguments.processes):
                ours, theirs = spawn.Pipe()
                processes.append(
                    spawn.Process(target=client, args=(server.url, folder / "hf", each, arguments.whole, theirs))
                )
                processes[-1].start()
                pipes.append(ours)
                assert ours.recv() == "ready"  # one after the other: they fetch the tokenizer
            for seconds in (2.0, arguments.seconds):  # the first round warms everything up
                for what, key in keys.items():
                    figures[what] = ordered(pipes, server.process.pid, (key, seconds, False))
                figures["ours"] = ordered(pipes, server.process.pid, (keys["on"], seconds, True))
            for pipe in pipes:
                pipe.send(None)
            for process in processes:
                process.join()
            operator = server.key("operator", "admin")
            for what, key in keys.items():
                ours, theirs = spawn.Pipe()
                count = arguments.queued if what == "on" else arguments.queued // 8
                queueing = spawn.Process(
                    target=queue, args=(server.url, folder / "hf", (key, operator), count, arguments.whole, theirs)
                )
                queueing.start()
                assert ours.recv() == "queued"
                figures[f"queued_{what}"] = drained(server.url, operator, server.process.pid)
                queueing.join()
    limit = figures["by_hand"][max(BATCHES)]
    figures["queued_of_the_limit"] = round(figures["queued_on"]["requests_per_second"] / limit, 3)
    figures["of_the_limit"] = round(figures["on"]["requests_per_second"] / limit, 3)
    figures["ours_of_the_limit"] = round(figures["ours"]["requests_per_second"] / limit, 3)
    figures["of_one_at_a_time"] = round(figures["on"]["requests_per_second"] / figures["off"]["requests_per_second"], 2)
    return figures


def queue(url: str, home: Path, keys: tuple[str, str], count: int, whole: bool, say: Connection) -> None:
    """Have ``count`` jobs wait for the model, which is paused; ``keys`` are the tenant's and an operator's."""
    key, operator = keys
    service.stock_client(url, home)
    from nnsight import TransformersModel
    from nnsight.intervention.backends.remote import RemoteBackend

    with Client(url, operator) as client:
        client.pause(REPO)
    model = TransformersModel(REPO, task="text-generation")
    for _ in range(count):
        backend = RemoteBackend(model.to_model_key(), api_key=key, blocking=False)
        with model.trace(prompts(1), backend=backend):
            value = (model.lm_head.output[:, -1] if whole else model.model.layers[LAYER].output).save()
    say.send("queued")


def drained(url: str, operator: str, server: int) -> dict[str, Any]:
    """Let the queue run until it is empty, with no client on the machine."""
    with Client(url, operator) as client:
        waiting = {job.id for job in client.jobs() if not job.state.ended}
        begun, cpu = time.time(), served(server)
        client.resume(REPO)
        while any(job.id in waiting and not job.state.ended for job in client.jobs()):
            time.sleep(0.5)
        now = served(server)
        ends = [job.ended for job in client.jobs() if job.id in waiting and job.ended is not None]
    return {
        "requests": len(ends),
        "requests_per_second": round(len(ends) / (max(ends) - begun), 2),
        "server_cpu_ms": {part: round(1000 * (now[part] - cpu[part]) / len(ends), 1) for part in now},
    }


def ordered(pipes: list[Connection], server: int, order: tuple[str, float, bool]) -> dict[str, Any]:
    """Let all clients run for so long: their key, seconds, whether they are ours."""
    begun, cpu = time.perf_counter(), served(server)
    for pipe in pipes:
        pipe.send(order)
    told = [pipe.recv() for pipe in pipes]
    spent = time.perf_counter() - begun
    found = [one for mine, _ in told for one in mine]
    latencies = [seconds for seconds, _ in found]
    return {
        "requests": len(found),
        "requests_per_second": round(len(found) / spent, 2),
        "p50_ms": round(1000 * statistics.median(latencies)),
        "p95_ms": round(1000 * statistics.quantiles(latencies, n=20)[-1]),
        "jobs_in_a_forward": round(statistics.mean(merged for _, merged in found), 1),
        "client_cpu_ms": round(1000 * sum(cpu for _, cpu in told) / len(found), 1),
        "server_cpu_ms": {
            part: round(1000 * (now - cpu.get(part, 0.0)) / len(found), 1) for part, now in served(server).items()
        },
    }


def served(pid: int) -> dict[str, float]:
    """CPU seconds of the service's processes by part, sandboxes that have ended included."""
    total = dict.fromkeys(("gateway", "redis", "replica", "sandboxes", "other"), 0.0)
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times, command = process.cpu_times(), " ".join(process.cmdline())
            part = next((part for sign, part in PARTS.items() if sign in command), "other")
            total[part] += times.user + times.system
            if part == "sandboxes":
                total[part] += times.children_user + times.children_system
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--processes", type=int, default=4, help="that the clients are spread over")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each of the two loads")
    parser.add_argument("--queued", type=int, default=96, help="jobs that are queued at once")
    parser.add_argument("--whole", action="store_true", help="save the last logits, which need the whole forward")
    parser.add_argument("--threads", type=int, default=1, help="processor threads of the model, here and there")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    figures = (
        measure(arguments)
        | service.circumstances()
        | {
            "clients": arguments.clients,
            "threads": arguments.threads,
            "whole": arguments.whole,
            "seconds": arguments.seconds,
            "cores": os.cpu_count(),
        }
    )
    print(f"{'':24}{'req/s':>8}{'p50 ms':>9}{'p95 ms':>9}{'merged':>9}{'client CPU ms':>15}  server CPU ms")
    for size, rate in figures["by_hand"].items():
        print(f"{f'by hand, {size} at a time':24}{rate:>8}")
    for what in ("queued_off", "queued_on"):
        one = figures[what]
        parts = ", ".join(f"{part} {ms:g}" for part, ms in one["server_cpu_ms"].items())
        name = f"batching: {what.removeprefix('queued_')}, queued"
        print(f"{name:24}{one['requests_per_second']:>8}{'':42}  {parts}")
    for what in ("off", "on", "ours"):
        one = figures[what]
        parts = ", ".join(f"{part} {ms:g}" for part, ms in one["server_cpu_ms"].items())
        print(
            f"{f'batching: {what}':24}{one['requests_per_second']:>8}{one['p50_ms']:>9}{one['p95_ms']:>9}"
            f"{one['jobs_in_a_forward']:>9}{one['client_cpu_ms']:>15}  {parts}"
        )
    shares = (
        f"{figures['of_the_limit']} with the clients on the same cores ({figures['ours_of_the_limit']} with ours), "
    )
    shares += f"{figures['queued_of_the_limit']} without"
    print(f"of what is batched by hand: {shares} (goal: 0.75)")
    print(f"of one at a time: {figures['of_one_at_a_time']} (goal: 2)")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
