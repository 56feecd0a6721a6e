"""What it costs that models come and go: the time back into memory, and what a second replica takes.

    python benchmarks/model_life.py [--rounds 3] [--json FILE]

SmolLM2-135M-Instruct with `runtime: process`, one replica, then two. In each round the model is evicted, and a stock
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

import psutil
import service

import interlace
from interlace.protocol.hosting import ModelView, Phase

MODEL = "smollm2-135m-instruct"
REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
_LOOK = 0.1  # seconds
_HOSTING = ("interlace_workers.zygote", "interlace_workers.runtimes.replica_process")


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


def until(client: interlace.Client, phases: set[Phase], replicas: int) -> ModelView:
    while True:
        view = client.model(REPO)
        if view.phase in phases and view.replicas == replicas:
            return view
        time.sleep(_LOOK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    configuration = {"runtime": "process", "models": [{"source": MODEL, "threads": 1}]}
    with tempfile.TemporaryDirectory(prefix="life-") as name, service.running(Path(name), configuration) as server:
        service.stock_client(server.url, Path(name) / "hf")
        from nnsight import TransformersModel

        model = TransformersModel(REPO, task="text-generation")

        def trace() -> float:
            begun = time.perf_counter()
            with model.trace("The Eiffel Tower is in the city", remote=True):
                model.model.layers[15].output.save()
            return time.perf_counter() - begun

        warm, back = [trace()], []
        with interlace.connect(server.url) as client:
            one = resident(server.process.pid)
            for _ in range(arguments.rounds):
                client.evict(REPO)
                until(client, {Phase.EVICTED}, 0)
                back.append(trace())
                warm.append(trace())
            client.scale(REPO, replicas=2)
            begun = time.perf_counter()
            until(client, {Phase.READY, Phase.IDLE}, 2)
            second = time.perf_counter() - begun
            time.sleep(2 * _LOOK)
            two = resident(server.process.pid)
    found = {
        "start_seconds": server.ready_seconds,
        "reload_seconds": statistics.median(back),
        "warm_seconds": statistics.median(warm),
        "second_replica_seconds": second,
        "one_replica_mib": one,
        "second_replica_mib": two - one,
    }
    print(f"{'from nothing to ready':<44}{found['start_seconds']:8.1f} s")
    print(f"{'evicted: from the call to the value':<44}{found['reload_seconds']:8.1f} s  (all: {sorted(back)})")
    print(f"{'in memory: from the call to the value':<44}{found['warm_seconds']:8.2f} s")
    print(f"{'a second replica is ready after':<44}{second:8.1f} s")
    print(f"{'memory of one replica':<44}{one:8.0f} MiB")
    print(f"{'of a second one beside it':<44}{two - one:8.0f} MiB  (ratio {(two - one) / one:.2f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(found | {"circumstances": service.circumstances()}, indent=2))


if __name__ == "__main__":
    main()
