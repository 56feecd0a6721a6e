"""What it costs that models come and go: the time back into memory, and what a second replica takes.

    python benchmarks/model_life.py [--runtime process|ray] [--rounds 3] [--json FILE]

SmolLM2-135M-Instruct, one replica, then two. In each round the model is evicted, and a stock
client's trace of eight tokens brings it back: from the call to the value. Beside it the same trace with the model in
memory. The memory is the proportional set size of all processes that host it, before and after `interlace scale
--replicas 2`.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import psutil
import service

import interlace
from interlace.protocol.hosting import ModelView, Phase

MODEL = "smollm2-135m-instruct"
REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
_LOOK = 0.1  # seconds
_HEARTBEAT = 6.0  # seconds in which a replica shows what it has measured
_HOSTING = ("interlace_workers.zygote", "interlace_workers.runtimes.replica_process", "ray::ServeReplica")
_LOAD = "interlace_weights_load_seconds"


def resident(pid: int) -> float:
    """MiB of the processes that host models below this one."""
    total = 0.0
    for one in psutil.Process(pid).children(recursive=True):
        try:
            if any(word in " ".join(one.cmdline()) for word in _HOSTING):
                total += one.memory_full_info().pss / (1 << 20)
        except psutil.NoSuchProcess:
            continue
    return total


def load_seconds(url: str) -> float:
    """What the replica that was started last says that its loading took."""
    text = httpx.get(f"{url}/metrics/workers").text
    found = [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(_LOAD)]
    return found[-1] if found else float("nan")


def until(client: interlace.Client, phases: set[Phase], replicas: int) -> ModelView:
    while True:
        view = client.model(REPO)
        if view.phase in phases and view.replicas == replicas:
            return view
        time.sleep(_LOOK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=("process", "ray"), default="process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    configuration = {"runtime": arguments.runtime, "models": [{"source": MODEL, "threads": 1}]}
    with tempfile.TemporaryDirectory(prefix="life-") as name, service.running(Path(name), configuration) as server:
        service.stock_client(server.url, Path(name) / "hf")
        from nnsight import TransformersModel

        model = TransformersModel(REPO, task="text-generation")

        def trace() -> float:
            begun = time.perf_counter()
            with model.trace("The Eiffel Tower is in the city", remote=True):
                model.model.layers[15].output.save()
            return time.perf_counter() - begun

        warm, back, loads = [trace()], [], []
        with interlace.connect(server.url) as client:
            one = resident(server.process.pid)
            for _ in range(arguments.rounds):
                client.evict(REPO)
                until(client, {Phase.EVICTED}, 0)
                back.append(trace())
                warm.append(trace())
                time.sleep(_HEARTBEAT)
                loads.append(load_seconds(server.url))
            client.scale(REPO, replicas=2)
            begun = time.perf_counter()
            until(client, {Phase.READY, Phase.IDLE}, 2)
            second = time.perf_counter() - begun
            time.sleep(2 * _LOOK)
            two = resident(server.process.pid)
    found = {
        "start_seconds": server.ready_seconds,
        "reload_seconds": statistics.median(back),
        "load_seconds": statistics.median(loads),
        "beside_load_seconds": statistics.median(whole - load for whole, load in zip(back, loads, strict=True)),
        "warm_seconds": statistics.median(warm),
        "second_replica_seconds": second,
        "one_replica_mib": one,
        "second_replica_mib": two - one,
    }
    print(f"{'from nothing to ready':<44}{found['start_seconds']:8.1f} s")
    print(f"{'evicted: from the call to the value':<44}{found['reload_seconds']:8.1f} s  (all: {sorted(back)})")
    print(f"{'of which the replica says it loaded':<44}{found['load_seconds']:8.1f} s")
    print(f"{'in memory: from the call to the value':<44}{found['warm_seconds']:8.2f} s")
    print(f"{'a second replica is ready after':<44}{second:8.1f} s")
    print(f"{'memory of one replica':<44}{one:8.0f} MiB")
    print(f"{'of a second one beside it':<44}{two - one:8.0f} MiB  (ratio {(two - one) / one:.2f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(found | {"circumstances": service.circumstances()}, indent=2))


if __name__ == "__main__":
    main()
