"""Dictionaries of SmolLM2-135M on real sentences, at two places, for the experiments on circuits, SHIFT and clusters.

    python benchmarks/methods/smollm2_dictionaries.py TEXTS OUT

TEXTS is the folder of `review_sentences`. Top 32 of 1,152 features, 38,400 tokens each: small ones, for one core.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import review_sentences
from claims import smollm2

from interlace.methods import find, notebook

PLACES = (("embed", 0), ("resid_post", 4))
TRAINING: dict[str, Any] = {
    "d_sae": 1152,
    "arch": "topk",
    "sparsity": {"type": "k", "k": 32, "dead_after": 15_000},
    "steps": 150,
    "batch": 256,
    "buffer": 12_800,
    "model_batch": 32,
    "context": 48,
    "skip_first": 1,
    "lr": 2e-3,
    "lr_warmup": 20,
    "sparsity_warmup": 0,
    "normalize": True,
}


def main(texts: Path, out: Path) -> None:
    """Writes `dictionaries.json`: each place's artifact and figures, as far as they are done."""
    model = smollm2()
    read = review_sentences.unlabelled(texts, 0)
    held, used = read[:48], read[48:]
    found: list[dict[str, Any]] = []
    for site, layer in PLACES:
        report = notebook.Notebook(out, bar=False)
        started = time.process_time()
        asked = {**TRAINING, "data": used, "site": site, "layer": layer}
        trained = notebook.run(find("sae.train"), model, asked, report)
        seconds = time.process_time() - started
        measured = notebook.run(
            find("sae.eval"), model, {"sae": trained.sae, "data": held, "model_batch": 8, "context": 48}, report
        )
        figures = {one.name: round(one.value, 4) for one in measured.metrics}
        found.append({"site": site, "layer": layer, "sae": trained.sae, "cpu_seconds": round(seconds), **figures})
        print(found[-1], flush=True)
        (out / "dictionaries.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
