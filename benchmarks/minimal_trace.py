"""What a minimal remote trace costs beside the same trace run locally, in the same minutes on the same weights.

    python benchmarks/minimal_trace.py [--runtime ray|process] [--rounds 60] [--json FILE]

Eight tokens, one hidden state saved, on SmolLM2-135M-Instruct in fp32. Starts its own Interlace, loads the model here
too, takes both times in turn (local, remote, local, ...) and prints medians, p95 and the ratio, the time from `up` to
ready, and the resident memory of every process of the service.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import service

MODEL = "smollm2-135m-instruct"
REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
LAYER = 15


def measure(url: str, home: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Time local and remote traces in turn; seconds."""
    service.stock_client(url, home, threads)
    import torch
    from nnsight import TransformersModel
    from transformers import AutoTokenizer

    from interlace_state.config import Config, ModelConfig
    from interlace_workers.sources import resolve

    path = str(resolve(ModelConfig(source=MODEL), Config().cache_dir, print).path)
    there = TransformersModel(REPO, task="text-generation")
    tokenizer = AutoTokenizer.from_pretrained(path)
    here = TransformersModel(path, task="text-generation", tokenizer=tokenizer, dtype=torch.float32, dispatch=True)
    tokens = torch.arange(100, 108)[None]

    def trace(model: Any, remote: bool) -> tuple[float, Any]:
        begun = time.perf_counter()
        with model.trace(tokens, remote=remote):
            hidden = model.model.layers[LAYER].output.save()
        return time.perf_counter() - begun, hidden

    for _ in range(3):
        first, second = trace(here, False)[1], trace(there, True)[1]
    torch.testing.assert_close(first, second)
    pairs = [(trace(here, False)[0], trace(there, True)[0]) for _ in range(rounds)]
    local, remote = ([pair[side] for pair in pairs] for side in (0, 1))
    return {
        "local": summary(local),
        "remote": summary(remote),
        "added": summary([far - near for near, far in pairs]),
        "ratio_p50": round(statistics.median(remote) / statistics.median(local), 2),
    }


def summary(seconds: list[float]) -> dict[str, float]:
    """p50 and p95 in milliseconds."""
    return {
        "p50_ms": round(1000 * statistics.median(seconds), 1),
        "p95_ms": round(1000 * statistics.quantiles(seconds, n=20)[-1], 1),
    }


def memory(pid: int) -> list[tuple[str, int]]:
    """(what, resident MiB) of the service's processes, the largest first."""
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        try:
            found.append((" ".join(one.cmdline())[:70] or one.name(), one.memory_info().rss >> 20))
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda pair: -pair[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=("ray", "process"), default="process")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1, help="processor threads, here and there")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        models = [{"source": MODEL, "threads": arguments.threads}]
        with service.running(folder, {"runtime": arguments.runtime, "models": models}) as server:
            figures = measure(server.url, folder / "hf", arguments.rounds, arguments.threads)
            processes = memory(server.process.pid)
    ready = server.ready_seconds
    figures |= service.circumstances() | {
        "runtime": arguments.runtime,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "ready_seconds": round(ready, 1),
        "resident_mib": processes,
    }
    print(f"{'':10}{'p50 ms':>10}{'p95 ms':>10}")
    for name in ("local", "remote", "added"):
        print(f"{name:10}{figures[name]['p50_ms']:>10}{figures[name]['p95_ms']:>10}")
    print(f"remote / local at p50: {figures['ratio_p50']};  from `up` to ready: {ready:.1f} s ({arguments.runtime})")
    for what, mib in processes:
        print(f"{mib:>8} MiB  {what}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
