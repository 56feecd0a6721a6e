"""What a minimal remote trace costs through stock nnsight and through our own client, beside the same trace, local.

    python benchmarks/own_client.py [--runtime ray|process] [--rounds 40] [--json FILE]

Eight tokens, one hidden state saved, on SmolLM2-135M-Instruct in fp32. Starts its own Interlace, loads the model here
too, takes the times in turn (local, stock, ours, local, ...), with a rest before each, and prints medians, p95 and what
each adds to local; the processor time of the client's process, which a busy machine does not change much; then where
our client's time goes: serialize, post (to the server's answer), load. `wait`, what is left, is the server's share, the
forward and the way back.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import service
from minimal_trace import LAYER, MODEL, REPO, summary

import interlace

STEPS = ("serialize", "post", "load")
#: Seconds before each trace, in which the server forks and warms the process of the next.
_REST = 0.3


class Stopwatch:
    """Seconds that the parts of our client took, one entry a call."""

    def __init__(self) -> None:
        from interlace import _backend, _http, _jobs

        self.seconds: dict[str, list[float]] = {step: [] for step in STEPS}
        homes: tuple[tuple[Any, str], ...] = (
            (_backend, "serialize"),
            (_http.Http, "submit"),
            (_jobs, "load"),
        )
        for step, (home, name) in zip(STEPS, homes, strict=True):
            setattr(home, name, self._timed(step, getattr(home, name)))

    def _timed(self, step: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return act(*arguments, **options)
            finally:
                self.seconds[step].append(time.perf_counter() - begun)

        return timed


def measure(url: str, home: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Time local traces and those of both clients in turn; seconds."""
    service.stock_client(url, home, threads)
    import torch
    from nnsight import TransformersModel
    from transformers import AutoTokenizer

    from interlace_state.config import Config
    from interlace_state.settings.models import ModelConfig
    from interlace_workers.sources.resolving import resolve

    path = str(resolve(ModelConfig(source=MODEL), Config().cache_dir, print).path)
    there = TransformersModel(REPO, task="text-generation")
    tokenizer = AutoTokenizer.from_pretrained(path)
    here = TransformersModel(path, task="text-generation", tokenizer=tokenizer, dtype=torch.float32, dispatch=True)
    tokens = torch.arange(100, 108)[None]

    def trace(model: Any, **options: Any) -> tuple[tuple[float, float], Any]:
        begun, used = time.perf_counter(), time.process_time()
        with model.trace(tokens, **options):
            hidden = model.model.layers[LAYER].output.save()
        return (time.perf_counter() - begun, time.process_time() - used), hidden

    watch = Stopwatch()
    with interlace.connect(url) as client:
        ways: dict[str, Callable[[], tuple[tuple[float, float], Any]]] = {
            "local": lambda: trace(here),
            "stock": lambda: trace(there, remote=True),
            "ours": lambda: trace(there, backend=client.on(there)),
        }
        for _ in range(3):
            first, *others = (way()[1] for way in ways.values())
        for other in others:
            torch.testing.assert_close(first, other)
        for step in STEPS:
            watch.seconds[step].clear()
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        used: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                time.sleep(_REST)
                took, processor = way()[0]
                seconds[name].append(took)
                used[name].append(processor)
    figures: dict[str, Any] = {name: summary(found) for name, found in seconds.items()}
    for name in ("stock", "ours"):
        pairs = zip(seconds[name], seconds["local"], strict=True)
        figures[f"{name} added"] = summary([far - near for far, near in pairs])
        figures[f"{name} processor"] = summary(used[name])
    # The stock client serializes by a method of its own, which is not timed.
    figures["steps"] = {step: summary(watch.seconds[step]) for step in STEPS}
    figures["steps"]["wait"] = summary(
        [whole - sum(parts) for whole, *parts in zip(seconds["ours"], *watch.seconds.values(), strict=True)]
    )
    figures["ratio_p50"] = round(statistics.median(seconds["ours"]) / statistics.median(seconds["local"]), 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=("ray", "process"), default="process")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="processor threads, here and there")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        models = [{"source": MODEL, "threads": arguments.threads}]
        with service.running(folder, {"runtime": arguments.runtime, "models": models}) as server:
            figures = measure(server.url, folder / "hf", arguments.rounds, arguments.threads)
    figures |= service.circumstances() | {key: getattr(arguments, key) for key in ("runtime", "threads", "rounds")}
    print(f"{'':17}{'p50 ms':>10}{'p95 ms':>10}")
    for name in ("local", "stock", "ours", "stock added", "ours added", "stock processor", "ours processor"):
        print(f"{name:17}{figures[name]['p50_ms']:>10}{figures[name]['p95_ms']:>10}")
    print("our client's time:")
    for name, found in figures["steps"].items():
        print(f"{name:17}{found['p50_ms']:>10}{found['p95_ms']:>10}")
    print(f"ours / local at p50: {figures['ratio_p50']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
