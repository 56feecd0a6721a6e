"""Memory of `sae.train`: what a job's process holds at most over the model's own, beside what `dry_run` says.

    python benchmarks/methods/sae_memory.py [--json FILE]

Each shape runs as a job, as in `diffusion_memory.py`: the peak is what the job's record has (its process's peak of
resident bytes over those that it began with). Steps are few, but enough for a second round of the buffer: the peak does
not grow with them. A first job of each model is not counted. The claim was written before the estimate was mended.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from claims import Claim, judged, written

import interlace

sys.path.insert(0, str(Path(__file__).parents[1]))
import service

FACTS = "local/facts-gpt-mini"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODELS = [
    {"source": str(Path(__file__).parents[2] / "tests" / "assets" / "facts-gpt-mini"), "repo_id": FACTS, "threads": 1},
    {"source": "smollm2-135m-instruct", "threads": 1},
]
_SHORT = {"lr_warmup": 1, "sparsity_warmup": 1}
_TOPK = {"type": "k", "k": 16}
_LARGE = {"layer": 3, "context": 48, "steps": 18, "batch": 1024, "buffer": 16_384, "d_sae": 2048}
#: Of each shape the model, and the parameters.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "facts, 96 features, batch 16": (
        FACTS,
        {"layer": 3, "context": 16, "steps": 6, "batch": 16, "buffer": 48, "d_sae": 96},
    ),
    "facts, 2,048 features, batch 1,024": (FACTS, _LARGE),
    "facts, gated": (FACTS, _LARGE | {"arch": "gated"}),
    "facts, annealed": (FACTS, _LARGE | {"sparsity": {"type": "p_anneal", "anneal_start": 2, "updates": 3}}),
    "facts, topk": (FACTS, _LARGE | {"arch": "topk", "sparsity": _TOPK}),
    "facts, batchtopk": (FACTS, _LARGE | {"arch": "batchtopk", "sparsity": _TOPK}),
    "facts, jumprelu": (FACTS, _LARGE | {"arch": "jumprelu", "sparsity": {"type": "l0"}}),
    "facts, a buffer of 131,072, scaled": (FACTS, _LARGE | {"buffer": 131_072, "steps": 4, "normalize": True}),
    "smollm2, 1,152 features, batch 256": (
        SMOLLM2,
        {"layer": 6, "context": 128, "steps": 18, "batch": 256, "buffer": 4096, "d_sae": 1152},
    ),
    "smollm2, 4,608 features, batch 2,048": (
        SMOLLM2,
        {"layer": 6, "context": 128, "steps": 4, "batch": 2048, "buffer": 6144, "d_sae": 4608},
    ),
}
CLAIMS = (
    Claim("the estimate is at least half of what was measured", lambda of: of["estimate"] >= of["peak_bytes"] / 2),
    Claim("the estimate is at most twice what was measured", lambda of: of["estimate"] <= of["peak_bytes"] * 2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", default=list(SHAPES))
    asked = parser.parse_args()
    figures: dict[str, dict[str, int]] = {}
    texts = [f"{i} men went to mow a meadow, and the dog of number {i} came along " * 12 for i in range(64)]
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        service.running(Path(folder), {"runtime": "process", "models": MODELS}) as server,
        interlace.connect(server.url) as client,
    ):
        begun: set[str] = set()
        for name in asked.only:
            model, shape = SHAPES[name]
            params = {"data": texts, **_SHORT, **shape}
            for _ in range(1 if model in begun else 2):
                job = client.submit_method("sae.train", model=model, params=params, seed=1)
                job.result()
            begun.add(model)
            assert job.cost is not None
            peak = job.cost.max_memory_usage or 0
            estimate = client.estimate("sae.train", model=model, params=params).peak_bytes
            figures[name] = {"peak_bytes": peak, "estimate": estimate}
            print(f"{name}: {peak / 2**20:.1f} MiB, said {estimate / 2**20:.1f}, {job.cost.cpu_seconds} s", flush=True)
    written(asked.json, figures, judged(CLAIMS, figures))


if __name__ == "__main__":
    main()
