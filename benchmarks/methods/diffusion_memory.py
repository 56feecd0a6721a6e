"""Memory of the diffusion methods: what a job's process holds at most over the model's own, beside the estimate.

    python benchmarks/methods/diffusion_memory.py [--json FILE]

Each runs as a job on the bundled pipeline, with a small and with a large batch: the peak is what the job's record has
(its process's peak of resident bytes over those that it began with), the estimate what `dry_run` answers. Steps are
few: the peak does not grow with them. A first job, of each method, is not counted.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import drawn_shapes
import torch
from claims import written

import interlace

sys.path.insert(0, str(Path(__file__).parents[1]))
import service

ASSET = Path(__file__).parents[2] / "tests" / "assets" / "shapes-diffusion-mini"
MODEL = "local/shapes-diffusion-mini"
PROMPT = "a large red circle"
_EVALUATION = {"n_per_prompt": 0}
#: Of each method its parameters, and those of a small and of a large batch.
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "customize.pair": (
        {"subject": PROMPT, "suffix": "in vex style", "content_rank": 8, "style_rank": 8, "content_steps": 1}
        | {"joint_steps": 2, "grad_accum": 1},
        {"batch": 1},
        {"batch": 32},
    ),
    "customize.style": ({"steps": 2, "crop": 1, "rank": 8, "evaluation": _EVALUATION}, {"batch": 1}, {"batch": 32}),
    "customize.generate": (
        {"prompts": [PROMPT] * 64, "steps": 1, "guidance": 3},
        {"batch": 1, "per_prompt": 1},
        {"batch": 64},
    ),
    "images.stylise": ({"steps": 2, "start_t": 600}, {"batch": 1}, {"batch": 64}),
    "images.filter": ({}, {"batch": 1}, {"batch": 64}),
    "attribute.images": ({"query_draws": 64, "fisher_draws": 1, "times": 1, "top": 4}, {"batch": 1}, {"batch": 64}),
    "denoise.strip": ({"prompt": PROMPT, "steps": 2, "guidance": 3}, {}, {}),
}
_FILTER = {"by": {"scorer": "denoiser", "levels": [0.5], "draws": 1}, "concepts": [{"name": PROMPT, "threshold": 9.0}]}


def inputs(client: interlace.Client) -> dict[str, dict[str, Any]]:
    """What each method is given."""

    def kept(pixels: torch.Tensor) -> str:
        return client.artifacts.upload_images(list(pixels), PROMPT, rights="drawn by a program").ref

    many = kept(drawn_shapes.draw(64, 0).pixels)
    few = kept(drawn_shapes.draw(2, 1).pixels)
    return {
        "customize.pair": {"images": kept(drawn_shapes.pair("square", "red", "edged"))},
        "customize.style": {"images": many},
        "images.stylise": {"images": many},
        "images.filter": {"images": many},
        "attribute.images": {"queries": few, "candidates": many},
    }


def measured(client: interlace.Client, method: str, params: Mapping[str, Any], given: Mapping[str, Any]) -> int:
    """Bytes of the job's peak."""
    job = client.submit_method(method, model=MODEL, params=params, inputs=given, seed=1)
    job.result()
    assert job.cost is not None
    return job.cost.max_memory_usage or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", default=list(RUNS))
    asked = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    models = [{"source": str(ASSET), "repo_id": MODEL, "threads": 1}]
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        service.running(Path(folder), {"runtime": "process", "models": models}) as server,
        interlace.connect(server.url) as client,
    ):
        given = inputs(client)
        for method in asked.only:
            shared, *sizes = RUNS[method]
            shared = shared | ({"image": _FILTER} if method == "images.filter" else {})
            for name, more in zip(("small", "large"), sizes, strict=True):
                params, own = {**shared, **more}, given.get(method, {})
                if name == "small":
                    measured(client, method, params, own)
                peak = measured(client, method, params, own)
                estimate = client.estimate(method, model=MODEL, params=params, inputs=own).peak_bytes
                figures[f"{method} {name}"] = {**more, "peak_bytes": peak, "estimate": estimate}
                print(f"{method} {more}: {peak / 2**20:.1f} MiB, estimated {estimate / 2**20:.1f}", flush=True)
    written(asked.json, figures, [])


if __name__ == "__main__":
    main()
