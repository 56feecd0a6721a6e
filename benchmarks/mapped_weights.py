"""What a second replica's weights cost, and a job's first forward: a mapped file beside anonymous pages of 2 MiB.

    python benchmarks/mapped_weights.py [--children 5] [--json FILE]

SmolLM2-135M-Instruct in fp32, one thread. Two processes hold it in each way, as two replicas would that share no
zygote: `mapped`, each parameter a view of one safetensors file, and `anonymous`, as our zygotes have them. Then each
first one forks children, one after another, which run the first forward of eight tokens each. A replica that shares a
zygote needs neither: its jobs are such children of the first one.

Prints, for each way: the proportional set size that the second process adds, its private part; and of a child, medians:
processor time of the fork, page faults and processor time of the first forward. No wall times: others may be at work.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import service

MODEL = "smollm2-135m-instruct"
WAYS = ("mapped", "anonymous")
_TOKENS = 8


def write(target: Path) -> None:
    """The checkpoint in fp32, which can be mapped as it is."""
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(_source(), dtype=torch.float32).save_pretrained(target)


def _source() -> Path:
    from interlace_state.config import Config
    from interlace_state.settings.models import ModelConfig
    from interlace_workers.sources.resolving import resolve

    return resolve(ModelConfig(source=MODEL), Config().cache_dir, lambda _: None).path


def hold(pipe: Connection, way: str, folder: Path) -> None:
    """A process that has the model, and does what it is told through ``pipe``."""
    import gc

    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from interlace_workers import heap
    from interlace_workers.weights import into_huge_pages

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if way == "mapped":
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=False, assign=True)
        model.tie_weights()
    else:
        into_huge_pages(model)

    def forward() -> None:
        with torch.no_grad():
            model(torch.arange(100, 100 + _TOKENS)[None])

    forward()
    gc.collect()
    heap.fill()
    gc.freeze()
    while (word := pipe.recv()) != "stop":
        pipe.send(_memory() if word == "memory" else _child(forward))


def _memory() -> dict[str, float]:
    """MiB of this process: proportional, and its own alone."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {"pss_mib": kib["Pss"] / 1024, "private_mib": (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024}


def _child(forward: Any) -> dict[str, float]:
    """Fork; the child runs the forward and says what that took of it."""
    ours, theirs = os.pipe()
    before = time.process_time()
    pid = os.fork()
    if pid == 0:
        began, faults = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        forward()
        took = time.process_time() - began
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        os.write(theirs, json.dumps({"faults": faults, "forward_ms": 1000 * took}).encode())
        os._exit(0)
    forked = time.process_time() - before
    os.close(theirs)
    said: dict[str, float] = json.loads(os.read(ours, 1000))
    os.close(ours)
    os.waitpid(pid, 0)
    return said | {"fork_ms": 1000 * forked}


@contextmanager
def holder(way: str, folder: Path) -> Iterator[Connection]:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=hold, args=(theirs, way, folder), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.send("stop")
        process.join()


def ask(pipe: Connection, word: str) -> dict[str, float]:
    pipe.send(word)
    answer: dict[str, float] = pipe.recv()
    return answer


def measure(way: str, folder: Path, children: int) -> dict[str, float]:
    with holder(way, folder) as first:
        one = ask(first, "memory")["pss_mib"]
        with holder(way, folder) as second:
            private = ask(second, "memory")
            two = ask(first, "memory")["pss_mib"] + private["pss_mib"]
        forked = [ask(first, "fork") for _ in range(children)]
    medians = {name: round(statistics.median(one[name] for one in forked), 1) for name in forked[0]}
    found = {"first_mib": one, "second_adds_mib": two - one, "second_private_mib": private["private_mib"]}
    return {name: round(value, 1) for name, value in found.items()} | medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        writing = get_context("spawn").Process(target=write, args=(Path(name),))
        writing.start()
        writing.join()
        if writing.exitcode:
            sys.exit("the checkpoint could not be written")
        figures = {way: measure(way, Path(name), arguments.children) for way in WAYS}
    print(f"{'':24}" + "".join(f"{way:>12}" for way in WAYS))
    for row in figures[WAYS[0]]:
        print(f"{row:24}" + "".join(f"{figures[way][row]:>12}" for way in WAYS))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures | service.circumstances(), indent=2) + "\n")


if __name__ == "__main__":
    main()
