"""A small trace with an adapter beside the same trace without, in turn: what attaching costs.

    python benchmarks/adapters.py [--rounds 8] [--json FILE]

SmolLM2-135M-Instruct in fp32 on one thread, 8 tokens of prompt, one value saved, from the stock client. Two LoRAs with
random weights, uploaded as artifacts: of rank 8 on the queries and values (60 modules), of rank 16 on every linear
layer (210 modules). Prints wall time, and the processor time of the job's process, at the median; `first` is the one
request that found the adapter in no memory.
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

_LORAS = {
    "rank 8, q and v": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
    "rank 16, all linear": {"r": 16, "target_modules": "all-linear"},
}


def upload(server: service.Service, folder: Path) -> dict[str, str]:
    """The names of the two, in a request."""
    import peft
    from transformers import AutoModelForCausalLM

    from interlace_state.config import Config
    from interlace_state.settings.models import ModelConfig
    from interlace_workers.sources.resolving import resolve

    path = resolve(ModelConfig(source=MODEL), Config().cache_dir, print).path
    found = {}
    with interlace.connect(server.url) as client:
        for name, settings in _LORAS.items():
            config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
            peft.get_peft_model(AutoModelForCausalLM.from_pretrained(path), config).save_pretrained(folder / name)
            artifact = client.artifacts.upload(folder / name, model=REPO)
            print(f"{name}: {artifact.size / 1e6:.1f} MB")
            found[name] = artifact.ref
    return found


def measure(server: service.Service, home: Path, folder: Path, rounds: int) -> dict[str, Any]:
    service.stock_client(server.url, home)
    import torch
    from nnsight import TransformersModel

    adapters: dict[str, str | None] = {"none": None, **upload(server, folder)}
    model = TransformersModel(REPO, task="text-generation")
    tokens = torch.arange(100, 108)[None]

    def trace(adapter: str | None) -> tuple[float, float]:
        """Seconds on the clock, and of the processor in the job's process."""
        model.peft = adapter
        begun = time.perf_counter()
        with model.trace(tokens, remote=True) as tracer:
            model.model.layers[LAYER].output.save()
        return time.perf_counter() - begun, tracer.backend.meta["cpu_seconds"]

    trace(None)
    first = {name: trace(adapter)[0] for name, adapter in adapters.items()}
    taken = [{name: trace(adapter) for name, adapter in adapters.items()} for _ in range(rounds)]
    return {
        name: summary([one[name][0] for one in taken])
        | {
            "first_ms": round(1000 * first[name], 1),
            "cpu_p50_ms": round(1000 * statistics.median(one[name][1] for one in taken), 1),
            "ratio_p50": round(statistics.median(one[name][0] / one["none"][0] for one in taken), 3),
        }
        for name in adapters
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        models = [{"source": MODEL, "threads": 1}]
        with service.running(folder, {"runtime": "process", "models": models}) as server:
            figures = measure(server, folder / "hf", folder, arguments.rounds)
    print(f"{'adapter':22}{'p50':>9}{'p95':>9}{'first':>9}{'cpu p50':>9}  ms{'ratio':>9}")
    for name, one in figures.items():
        columns = (one["p50_ms"], one["p95_ms"], one["first_ms"], one["cpu_p50_ms"])
        print(f"{name:22}{''.join(f'{value:>9}' for value in columns)}    {one['ratio_p50']:>9}")
    figures |= service.circumstances() | {"rounds": arguments.rounds}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
