"""Are planted behaviours found again by clustering? An experiment that can fail, reported as it is.

    python benchmarks/methods/behaviors.py [--seeds 41 42 43] [--templates] [--json FILE]

A language model of three blocks has learned five behaviours in streams of chance words (`planted_behaviors`). Samples
are whatever it foresees to .3 nats; the behaviour that each is of is known, and is told to nobody. Vectors of effects
of features are clustered in five; the control deals each dimension's values anew to the samples. A seed is one of the
model, the dictionaries (after blocks 0 and 1) and the streams.

The first two claims are those of our notes (C5), the others our own; all were in this file before the run that the
results are of. In a pilot on seed 100 all that sums over tokens found nothing (adjusted Rand index .02 to .07:
`sae_effect`, `sae_act`, `param_grad`, by either clustering); the last token's features were taken for the run, and two
claims on `param_grad` and one on shuffled vectors were dropped.

With `--templates` (a second experiment, written after the first had failed on its first seed, with the same claims)
each text is of one behaviour, whose chance words are its own: the distinct templates that our notes have.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import planted_behaviors
import torch
from claims import Claim, judged, written
from sklearn.metrics import adjusted_rand_score

from interlace.methods import find, notebook

#: Vectors, clustering, and the tokens whose features count: the last, or the sum over all.
WAYS: tuple[tuple[str, str, int | None], ...] = (
    ("sae_effect", "kmeans", 1),
    ("sae_effect", "spectral", 1),
    ("sae_effect", "kmeans", None),
)
CLAIMS = (
    Claim("sae_effect of the last token, kmeans: adjusted Rand index at least .8", lambda of: of["kmeans last"] >= 0.8),
    Claim("the same, shuffled: at most .1", lambda of: of["kmeans last shuffled"] <= 0.1),
    Claim("sae_effect of the last token, spectral: at least .8", lambda of: of["spectral last"] >= 0.8),
    Claim("sae_effect summed over tokens, kmeans: at least .8", lambda of: of["kmeans sum"] >= 0.8),
    Claim("every way: silhouette above that of shuffled vectors", lambda of: of["least silhouette over shuffled"] > 0),
)
TRAINING: dict[str, Any] = {
    "site": "resid_post",
    "d_sae": 128,
    "arch": "topk",
    "sparsity": {"type": "k", "k": 8, "dead_after": 100_000},
    "steps": 300,
    "batch": 256,
    "buffer": 8192,
    "model_batch": 64,
    "context": planted_behaviors.LENGTH,
    "lr": 3e-3,
    "lr_warmup": 20,
    "sparsity_warmup": 20,
    "normalize": True,
}
SAMPLES = 250


def found_again(seed: int, folder: str, templates: bool) -> tuple[dict[str, float], Any]:
    """The figures of one seed, and the result of the first way."""
    model = planted_behaviors.reader(seed, templates=templates)
    report = notebook.Notebook(folder, seed=seed, bar=False)

    def run(method: str, params: dict[str, Any]) -> Any:
        return notebook.run(find(method), model, params, report)

    read = planted_behaviors.streams(1500, seed * 7 + 1, templates=templates).texts
    saes = [run("sae.train", {"data": read, "layer": layer, **TRAINING}).sae for layer in (0, 1)]
    streams = planted_behaviors.streams(250, seed * 7 + 2, templates=templates)
    figures: dict[str, float] = {}
    first, gaps = None, []
    for vectors, clustering, last in WAYS:
        how = {"data": streams.texts, "saes": saes, "vectors": vectors, "clustering": clustering, "last": last}
        how |= {"samples": SAMPLES, "clusters": planted_behaviors.BEHAVIORS, "model_batch": 32}
        # Circuits of the first way are enough.
        how |= {"nodes": 6, "circuit_samples": 8} if first is None else {"nodes": 1, "circuit_samples": 1}
        result = run("behaviors.cluster", {**how, "method": "ig" if first is None else "atp"})
        first = first or result
        rows = result.table("samples").rows
        truth = [streams.answers[row[0]].get(row[1], -1) for row in rows]
        name = f"{clustering} {'sum' if last is None else 'last'}"
        figures[name] = adjusted_rand_score(truth, [row[2] for row in rows])
        figures[f"{name} shuffled"] = adjusted_rand_score(truth, [row[3] for row in rows])
        print(seed, name, round(figures[name], 3), flush=True)
        gaps.append(result.metric("silhouette", "vectors").value - result.metric("silhouette", "shuffled").value)
        figures["samples"] = result.metric("samples").value
        figures["foreseen but not planted"] = truth.count(-1)
    figures["least silhouette over shuffled"] = min(gaps)
    return figures, first


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[41, 42, 43])
    parser.add_argument("--templates", action="store_true")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for seed in args.seeds:
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            figures, first = found_again(seed, folder, args.templates)
        figures["cpu_seconds"] = time.process_time() - started
        found[f"seed {seed}"] = figures
        for name, value in figures.items():
            print(f"{seed}  {name:32} {value:.3f}")
        sys.stdout.flush()
        if args.picture:
            first.plot().savefig(args.picture / "behaviors.png", dpi=90)
            (args.picture / "behaviors.html").write_text(first.page())
        written(args.json, found, judged(CLAIMS, found), training=TRAINING, samples=SAMPLES)


if __name__ == "__main__":
    main()
