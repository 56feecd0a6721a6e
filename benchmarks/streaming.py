"""What it costs that values come early, and how early they come: a generation that saves a hidden state at each step.

    python benchmarks/streaming.py [--tokens 32] [--rounds 8] [--json FILE]

SmolLM2-135M-Instruct in fp32, on its own Interlace and here. In turn: local, through our client with all values in the
result, and streaming, where each value is taken as it comes. Prints medians and p95 of the whole and, where it streams,
when the first value and the one in the middle came.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import service
from minimal_trace import LAYER, MODEL, REPO, summary

import interlace

_REST = 0.3  # seconds before each, in which the server forks and warms the process of the next


def measure(url: str, home: Path, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds of each way, and of values on their way."""
    service.stock_client(url, home)
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
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    prompt = "The Eiffel Tower is in the city of"

    def generate(model: Any, backend: Any = None) -> tuple[float, list[float]]:
        begun, came = time.perf_counter(), []
        with model.generate(prompt, backend=backend, **options) as tracer:
            found = [].save()
            for _ in tracer.iter[:tokens]:
                found.append(model.model.layers[LAYER].output)
        if backend is not None and not backend.blocking:
            came = [time.perf_counter() - begun for _ in backend.job.values()]
            found = backend.job.result()["found"]
            assert len(came) == tokens
        assert len(found) == tokens
        return time.perf_counter() - begun, came

    with interlace.connect(url) as client:
        ways = {
            "local": lambda: generate(here),
            "at its end": lambda: generate(there, client.on(there)),
            "streaming": lambda: generate(there, client.on(there, blocking=False)),
        }
        for way in ways.values():
            way()
        found: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                time.sleep(_REST)
                found[name].append(way())
    figures: dict[str, Any] = {name: summary([whole for whole, _ in runs]) for name, runs in found.items()}
    for name, position in (("first value", 0), ("middle value", tokens // 2)):
        figures[name] = summary([came[position] for _, came in found["streaming"]])
    local = statistics.median(whole for whole, _ in found["local"])
    figures["ratio_p50"] = {
        name: round(statistics.median(whole for whole, _ in runs) / local, 3) for name, runs in found.items()
    }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        models = [{"source": MODEL, "threads": 1}]
        with service.running(folder, {"runtime": "process", "models": models}) as server:
            figures = measure(server.url, folder / "hf", arguments.tokens, arguments.rounds)
    figures |= service.circumstances() | {"tokens": arguments.tokens, "rounds": arguments.rounds}
    print(f"{'':14}{'p50 ms':>10}{'p95 ms':>10}{'to local':>10}")
    for name in ("local", "at its end", "streaming", "first value", "middle value"):
        ratio = figures["ratio_p50"].get(name, "")
        print(f"{name:14}{figures[name]['p50_ms']:>10}{figures[name]['p95_ms']:>10}{ratio:>10}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
