"""A generation of 32 tokens that saves the hidden states of each step, remote beside local, in turn.

    python benchmarks/generation.py [--rounds 8] [--json FILE]

SmolLM2-135M-Instruct in fp32, 8 tokens of prompt, greedy; each step's hidden state of block 15 is kept in a list.
Remote is the stock client. Prints medians, p95 and the ratio of each round.
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

_STEPS = 32


def measure(server: service.Service, home: Path, rounds: int, threads: int) -> dict[str, Any]:
    service.stock_client(server.url, home, threads)
    import nnsight
    import torch
    from nnsight import TransformersModel

    there, here = TransformersModel(REPO, task="text-generation"), service.local_model(MODEL)
    tokens = torch.arange(100, 108)[None]
    lengths = {"max_new_tokens": _STEPS, "min_new_tokens": _STEPS, "do_sample": False}

    def generate(model: Any, **how: Any) -> tuple[float, Any]:
        begun = time.perf_counter()
        with model.generate(tokens, **lengths, **how) as tracer:
            states = nnsight.save([])
            for _ in tracer.iter[:]:
                states.append(model.model.layers[LAYER].output[0])
        return time.perf_counter() - begun, states

    first, second = generate(here)[1], generate(there, remote=True)[1]
    assert len(first) == len(second) == _STEPS
    torch.testing.assert_close(first[-1], second[-1])
    taken = [(generate(here)[0], generate(there, remote=True)[0]) for _ in range(rounds)]
    return {
        "local": summary([local for local, _ in taken]),
        "stock": summary([stock for _, stock in taken]),
        "ratio_p50": round(statistics.median(stock / local for local, stock in taken), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="processor threads, here and there")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        models = [{"source": MODEL, "threads": arguments.threads}]
        with service.running(folder, {"runtime": "process", "models": models}) as server:
            figures = measure(server, folder / "hf", arguments.rounds, arguments.threads)
    figures |= service.circumstances() | {"threads": arguments.threads, "rounds": arguments.rounds}
    for name in ("local", "stock"):
        print(f"{name:8}p50 {figures[name]['p50_ms']:>8} ms  p95 {figures[name]['p95_ms']:>8} ms")
    print(f"remote / local, median of the rounds: {figures['ratio_p50']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
