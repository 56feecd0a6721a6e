"""What a minimal remote trace costs with a resident model on a device, beside the same trace run locally there.

    python benchmarks/resident.py [--device cuda] [--dtype bfloat16] [--layers 16] [--width 2048] [--rounds 40]

A Llama with random weights is written, hosted with `executor: resident`, and loaded here, too, on the same device. In
turn: the trace here, the same with the stock client, and the same from a kept connection with its payload made ahead
(`minimal_trace.Bare`). Also: how long a look at all weights takes, which follows each job, and the load.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import minimal_trace
import service

REPO = "benchmark/llama"


def write(folder: Path, layers: int, width: int) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[UNK]").save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 256,
        vocab_size=32_000,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def measure(server: service.Service, home: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    service.stock_client(server.url, home)
    import torch
    from nnsight import TransformersModel
    from nnsight.intervention.backends.remote import RemoteBackend
    from transformers import AutoTokenizer

    from interlace_workers.child.loading.model import HostedModel
    from interlace_workers.child.resident import Likeness

    there = TransformersModel(REPO, task="text-generation")
    here = TransformersModel(
        str(folder),
        task="text-generation",
        tokenizer=AutoTokenizer.from_pretrained(folder),
        dtype=arguments.quantization or getattr(torch, arguments.dtype),
        device_map={"": arguments.device},
        dispatch=True,
    )
    tokens = torch.arange(100, 108)[None]

    class Serialized(RemoteBackend):
        """Keeps the payload in place of sending it."""

        def __call__(self, tracer: Any = None) -> None:
            self.payload = self._serialize(tracer)

    def trace(model: Any, **how: Any) -> tuple[float, Any]:
        begun = time.perf_counter()
        hidden = None
        with model.trace(tokens, **how):
            hidden = model.model.layers[1].output.save()
        if hidden is not None:
            hidden = hidden.cpu()  # which waits for the device
        return time.perf_counter() - begun, hidden

    backend = Serialized(there.to_model_key(), env=there._remoteable_get_env())
    trace(there, backend=backend)
    bare = minimal_trace.Bare(server.url, backend, backend.payload)
    for _ in range(3):
        first, second, _ = trace(here)[1], trace(there, remote=True)[1], bare.request()
    torch.testing.assert_close(first, second)
    taken = [(trace(here)[0], trace(there, remote=True)[0], bare.request()[0]) for _ in range(arguments.rounds)]
    looks = []
    module = here._module
    for _ in range(5):
        begun = time.perf_counter()
        Likeness.of(HostedModel(here, {}, 1, 0, 0))
        looks.append(time.perf_counter() - begun)
    return {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "local": minimal_trace.summary([local for local, *_ in taken]),
        "stock": minimal_trace.summary([stock for _, stock, _ in taken]),
        "server share": minimal_trace.summary([bare - local for local, _, bare in taken]),
        "likeness": minimal_trace.summary(looks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", help="hold the weights so, there and here")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        # In a process of its own: transformers reads where the hub is when it is imported, see `stock_client`.
        sizes = (folder / "model", arguments.layers, arguments.width)
        writing = multiprocessing.get_context("spawn").Process(target=write, args=sizes)
        writing.start()
        writing.join()
        model = {
            "source": str(folder / "model"),
            "repo_id": REPO,
            "dtype": arguments.dtype,
            "executor": "resident",
            "trusted": ["local"],
            "device": arguments.device,
            "quantization": arguments.quantization,
        }
        with service.running(folder, {"runtime": "process", "models": [model]}) as server:
            figures = measure(server, folder / "hf", folder / "model", arguments)
    figures |= service.circumstances() | {"device": arguments.device, "ready_seconds": round(server.ready_seconds, 1)}
    print(f"{figures['parameters']:,} parameters, {arguments.quantization or arguments.dtype} on {arguments.device}")
    print(f"{'':16}{'p50 ms':>10}{'p95 ms':>10}")
    for name in ("local", "stock", "server share", "likeness"):
        print(f"{name:16}{figures[name]['p50_ms']:>10}{figures[name]['p95_ms']:>10}")
    print(f"from `up` to ready: {server.ready_seconds:.1f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
