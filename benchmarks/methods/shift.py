"""Does SHIFT take a planted cue out of a classifier? An experiment that can fail, reported as it is.

    python benchmarks/methods/shift.py [--seeds 31 32 33] [--json FILE]

A language model of three blocks has read made-up biographies (`planted_bios`). A head on its mean-pooled last states
learns the profession where gender always agrees with it, and is judged where the two are independent. Dictionaries are
at the embeddings and after blocks 0 and 1. Whoever marks features sees only their strongest contexts, without labels
(`planted_bios.is_of_gender`). As many random features that are on are the control; a head that was trained on balanced
texts the oracle. A seed is one of the model, the dictionaries and all texts.

The claims are those of our notes (C4); they were in this file before the run that the results are of. Sizes and the
sparsity come from a pilot on seed 100.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import planted_bios
import torch
from claims import Claim, judged, written

from interlace.methods import find, notebook

CLAIMS = (
    Claim("original: profession at most .75", lambda of: of["original intended"] <= 0.75),
    Claim("original: gender at least .75", lambda of: of["original spurious"] >= 0.75),
    Claim("ablated: profession at least .90", lambda of: of["ablated intended"] >= 0.90),
    Claim("ablated: gender at most .58", lambda of: of["ablated spurious"] <= 0.58),
    Claim("ablated: worst group at least .80", lambda of: of["ablated worst_group"] >= 0.80),
    Claim("retrained: profession at least .85", lambda of: of["ablated, retrained intended"] >= 0.85),
    Claim(
        "random features move profession by at most .03",
        lambda of: abs(of["random intended"] - of["original intended"]) <= 0.03,
    ),
    Claim("oracle: profession at least .95", lambda of: of["oracle intended"] >= 0.95),
)
PLACES = (("embed", 0), ("resid_post", 0), ("resid_post", 1))
TRAINING: dict[str, Any] = {
    "d_sae": 256,
    "arch": "topk",
    "sparsity": {"type": "k", "k": 6, "dead_after": 100_000},
    "steps": 800,
    "batch": 512,
    "buffer": 16_384,
    "model_batch": 64,
    "context": planted_bios.LENGTH,
    "lr": 2e-3,
    "lr_warmup": 20,
    "sparsity_warmup": 20,
    "normalize": True,
}


def shift(seed: int, folder: str, heads: dict[str, Any]) -> tuple[dict[str, float], Any, Any]:
    """The figures of one seed, and both results."""
    model = planted_bios.reader(seed)
    report = notebook.Notebook(folder, seed=seed, bar=False)

    def run(method: str, params: dict[str, Any]) -> Any:
        return notebook.run(find(method), model, params, report)

    read = planted_bios.bios(3000, seed * 7 + 1, ambiguous=False).texts
    trained = [run("sae.train", {"data": read, "site": site, "layer": layer, **TRAINING}) for site, layer in PLACES]
    ambiguous = planted_bios.bios(1000, seed * 7 + 2, ambiguous=True)
    balanced = planted_bios.bios(1000, seed * 7 + 3, ambiguous=False)
    oracle = planted_bios.bios(1000, seed * 7 + 4, ambiguous=False)
    params = {
        "saes": [one.sae for one in trained],
        "ambiguous": ambiguous.texts,
        "labels": ambiguous.labels,
        "balanced": balanced.texts,
        "intended": balanced.labels,
        "spurious": balanced.cues,
        "oracle": oracle.texts,
        "oracle_labels": oracle.labels,
        "layer": 2,
        "model_batch": 64,
        "context": planted_bios.LENGTH,
        **heads,
    }
    first = run("classifier.shift", params)
    marked = [
        {"place": one.place, "feature": one.feature}
        for one in first.candidates
        if planted_bios.is_of_gender(one.shown.contexts)
    ]
    figures: dict[str, float] = {
        **{f"explained {site} {layer}": one.metric("variance_explained").value
           for (site, layer), one in zip(PLACES, trained, strict=True)},
        "candidates": len(first.candidates),
        "marked": len(marked),
    }  # fmt: skip
    if not marked:
        return figures, first, first
    second = run("classifier.shift", {**params, "head": first.head, "ablate": marked})
    figures |= {f"{one.split} {one.name}": one.value for one in second.metrics}
    return figures, first, second


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for seed in args.seeds:
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            figures, first, second = shift(seed, folder, {"epochs": args.epochs})
        figures["cpu_seconds"] = time.process_time() - started
        found[f"seed {seed}"] = figures
        for name, value in figures.items():
            print(f"{seed}  {name:32} {value:.3f}")
        sys.stdout.flush()
        if args.picture:
            first.plot().savefig(args.picture / "shift-candidates.png", dpi=80)
            second.plot().savefig(args.picture / "shift.png", dpi=90)
        written(args.json, found, judged(CLAIMS, found), training=TRAINING, epochs=args.epochs)


if __name__ == "__main__":
    main()
