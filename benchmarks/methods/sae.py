"""Do our dictionaries do what the paper says of them? An experiment that can fail, reported as it is.

    python benchmarks/methods/sae.py [--parts synthetic othello library] [--seeds 21 22 23] [--json FILE]

**synthetic** (V1 of our notes; 2408.00113 has none): a dictionary that is known, 128 directions in 48 dimensions, 4.3
of them on. Standard with L1 against p-annealing, three lambdas each, everything read off at the same L0.
**othello**: a GPT-2 of 6 x 128 that was trained on random games, the residual stream after block 2, where a linear
probe reads the board best. p-annealing against L1 at the same L0; the trained model against one of random weights;
both against a linear probe. A seed is one of the dictionary and of the games that it was trained on; the evaluation's
games are others.
**library**: our steps beside those of `dictionary_learning` 0.1.0, where it can be imported, from the same weights on
the same batches.
Real text with a real model is `sae_text.py`.

The thresholds below were written before the run that the results are of. Lambdas come from a pilot on seed 100.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import othello
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
import service
from nnsight.modeling.transformers import TransformersModel

from interlace.methods import notebook
from interlace.methods.base import Metric
from interlace.methods.sae.coder import Coder
from interlace.methods.sae.harvest import Harvester, Rounds
from interlace.methods.sae.spec import SPECS, TrainParams
from interlace.methods.sae.train import metadata
from interlace.methods.shared.corpus import Corpus

MODEL = Path(__file__).parents[2] / "tests" / "assets" / "othello-gpt-mini"
LAYER = 2
_EVALUATE = SPECS[1]

#: Written before the run. Each is held for every seed, at the same L0.
THRESHOLDS = {
    "synthetic: variance explained, p-anneal over L1, at least": 0.02,
    "synthetic: |1 - gamma|, p-anneal over L1's, at most": 0.5,
    "synthetic: coverage of the known directions, p-anneal over L1, at least": -0.08,
    "othello: F1 of the linear probe on the trained model, at least (else the boards are not testable)": 0.90,
    "othello: reconstruction, trained over random weights, at least": 0.25,
    "othello: coverage, trained over random weights, at least": 0.05,
    "othello: reconstruction, p-anneal over L1, at least": 0.03,
    "othello: coverage, p-anneal over L1, at least": -0.03,
    "othello: loss recovered, both, at least": 0.95,
    "othello: |1 - gamma|, p-anneal over L1's, at most": 0.5,
}
_SYNTHETIC_L0 = 14.0
_OTHELLO_L0 = 70.0


class Rows:
    """Figures with their names, printed and kept as they come: what is broken off has what there was."""

    def __init__(self, file: str | None, thresholds: dict[str, Any] | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.judged: dict[str, Any] = {}
        self._file = file
        self._thresholds = THRESHOLDS if thresholds is None else thresholds

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print("  ".join(shown), flush=True)
        self.keep()

    def keep(self) -> None:
        if self._file:
            kept = {"thresholds": self._thresholds, "judged": self.judged, "rows": self.rows, **service.circumstances()}
            Path(self._file).write_text(json.dumps(kept, indent=1) + "\n")


def at_l0(rows: list[dict[str, Any]], name: str, l0: float) -> float:
    """A figure at an L0, on the straight line in log L0 between the two dictionaries about it. nan outside them."""
    ordered = sorted(rows, key=lambda row: float(row["l0"]))
    known = [float(row["l0"]) for row in ordered]
    if not known[0] <= l0 <= known[-1]:
        return float("nan")
    return float(np.interp(np.log(l0), np.log(known), [float(row[name]) for row in ordered]))


# --- synthetic


def synthetic(rows: Rows, seeds: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for seed in seeds:
        draw = _known(seed)
        test, truth = draw(torch.Generator().manual_seed(seed + 1), 8192)
        by_kind: dict[str, list[dict[str, Any]]] = {"l1": [], "p_anneal": []}
        for kind, weights in (("l1", (0.1, 0.2, 0.35)), ("p_anneal", (0.05, 0.1, 0.2))):
            for weight in weights:
                sparsity = {"type": kind, "weight": weight} | ({"anneal_start": 250} if kind == "p_anneal" else {})
                params = TrainParams(
                    **_brief(1000, 256), sparsity=sparsity, d_sae=256, lr=1e-3, lr_warmup=50, sparsity_warmup=200
                )
                coder, batches = Coder(params, 48, seed), torch.Generator().manual_seed(seed + 2)
                for step in range(params.steps):
                    coder.step(step, draw(batches, params.batch)[0])
                row = _against_truth(coder.dictionary(1.0, test, {}), test, truth)
                by_kind[kind].append(row)
                rows.add(part="synthetic", seed=seed, kind=kind, weight=weight, **row)
        matched = {
            kind: {name: at_l0(some, name, _SYNTHETIC_L0) for name in ("explained", "gamma", "coverage", "alive")}
            for kind, some in by_kind.items()
        }
        annealed, plain = matched["p_anneal"], matched["l1"]
        rows.add(
            part="synthetic",
            seed=seed,
            l0=_SYNTHETIC_L0,
            **{f"{k}_{n}": v for k, d in matched.items() for n, v in d.items()},
        )
        found[str(seed)] = {
            "explained": (gain := annealed["explained"] - plain["explained"], gain >= 0.02),
            "shrinkage": (ratio := abs(1 - annealed["gamma"]) / abs(1 - plain["gamma"]), ratio <= 0.5),
            "coverage": (gain := annealed["coverage"] - plain["coverage"], gain >= -0.08),
        }
    return found


def _brief(steps: int, batch: int) -> dict[str, Any]:
    return {"data": ["-"], "layer": LAYER, "steps": steps, "batch": batch}


def _known(seed: int) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """A source of activations and of which directions are in them."""
    directions = torch.randn(128, 48, generator=torch.Generator().manual_seed(seed))
    directions /= directions.norm(dim=-1, keepdim=True)
    often = 4.3 / 128

    def draw(generator: torch.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        on = torch.rand(n, 128, generator=generator) < often
        strengths = on * (0.5 + torch.rand(n, 128, generator=generator))
        return strengths @ directions, on

    return draw


def _against_truth(dictionary: Any, x: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    features = dictionary.encode(x)
    rebuilt = dictionary.decode(features)
    best = torch.zeros(truth.shape[1])
    for level in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        on = (features > level * features.amax(0)).float()
        both = on.T @ truth.float()
        f1 = 2 * both / (on.sum(0)[:, None] + truth.sum(0)).clamp_min(1)
        best = torch.maximum(best, f1.amax(0))
    return {
        "l0": float((features > 0).sum(-1).float().mean()),
        "explained": 1 - float((x - rebuilt).pow(2).sum() / (x - x.mean(0)).pow(2).sum()),
        "gamma": float(rebuilt.pow(2).sum() / (x * rebuilt).sum()),
        "coverage": float(best.mean()),
        "alive": float((features > 0).any(0).float().mean()),
    }


# --- othello

_NAMES = (
    "l0",
    "variance_explained",
    "gamma",
    "loss_recovered",
    "loss_recovered_over_mean",
    "coverage",
    "coverage_shared_threshold",
    "board_reconstruction",
    "board_reconstruction_pooled",
    "alive",
)
_WEIGHTS = {"l1": (0.08, 0.13), "p_anneal": (0.05, 0.085)}
_RANDOM_WEIGHTS = (0.012, 0.04)


def othellos(rows: Rows, seeds: list[int], report: notebook.Notebook, steps: int) -> dict[str, Any]:
    trained = TransformersModel(str(MODEL), task="text-generation", dispatch=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])
        bare = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL)).eval()
    random = TransformersModel(bare, tokenizer=trained.tokenizer)
    labelled = _labelled(report, 200, 900_001)
    found: dict[str, Any] = {}
    for name, model in (("trained", trained), ("random", random)):
        probed = _probe(model, report)
        rows.add(part="othello", model=name, what="linear probe", **probed)
        found[f"probe {name}"] = probed["f1"]
    testable = found["probe trained"] >= 0.90
    for seed in seeds:
        kinds: dict[str, list[dict[str, Any]]] = {}
        for name, model, sparsities in (
            ("trained", trained, [(kind, weight) for kind, some in _WEIGHTS.items() for weight in some]),
            ("random", random, [("p_anneal", weight) for weight in _RANDOM_WEIGHTS]),
        ):
            pool, scale = _pool(model, report, seed)
            for kind, weight in sparsities:
                begun = time.process_time()
                row = _dictionary_of(model, report, pool, scale, seed, kind, weight, steps, labelled)
                kinds.setdefault(f"{name} {kind}", []).append(row)
                rows.add(
                    part="othello",
                    model=name,
                    seed=seed,
                    kind=kind,
                    weight=weight,
                    cpu=time.process_time() - begun,
                    **row,
                )
        found[str(seed)] = _judged(rows, kinds, seed, testable)
        rows.judged["othello"] = found
    return found


def _judged(rows: Rows, kinds: dict[str, list[dict[str, Any]]], seed: int, testable: bool) -> dict[str, Any]:
    at = {kind: {name: at_l0(some, name, _OTHELLO_L0) for name in _NAMES[1:]} for kind, some in kinds.items()}
    for kind, figures in at.items():
        rows.add(part="othello", seed=seed, kind=kind, at_l0=_OTHELLO_L0, **figures)
    plain, annealed, random = at["trained l1"], at["trained p_anneal"], at["random p_anneal"]

    def over(name: str, other: dict[str, float], least: float) -> tuple[float, bool | str]:
        gain = annealed[name] - other[name]
        held = gain >= least
        return gain, held if testable else f"not testable ({held})"

    return {
        "reconstruction over random weights": over("board_reconstruction", random, 0.25),
        "coverage over random weights": over("coverage", random, 0.05),
        "reconstruction over L1": over("board_reconstruction", plain, 0.03),
        "coverage over L1": over("coverage", plain, -0.03),
        "loss recovered": (least := min(plain["loss_recovered"], annealed["loss_recovered"]), least >= 0.95),
        "shrinkage": (ratio := abs(1 - annealed["gamma"]) / abs(1 - plain["gamma"]), ratio <= 0.5),
    }


def _labelled(report: notebook.Notebook, n: int, seed: int) -> str:
    tokens, labels = othello.games(n, seed)
    names = [f"{whose} {square}" for whose in ("mine", "yours") for square in othello.SQUARES]
    tensors = {"tokens": torch.from_numpy(tokens[:, :59].copy()), "labels": torch.from_numpy(labels[:, :59].copy())}
    return report.artifact("data", tensors, {"names": names})


def _pool(model: Any, report: notebook.Notebook, seed: int) -> tuple[torch.Tensor, float]:
    """Activations of 3,500 games, and the root of their mean squared norm."""
    tokens, _ = othello.games(3500, seed)
    corpus = Corpus([torch.from_numpy(row[row >= 0][:59]) for row in tokens])
    harvester = Harvester.of(model, "resid_post", LAYER, report, 0)
    pool = Rounds(corpus, harvester, seed, 200_000, 1, 128).rows()
    return pool, float(pool.pow(2).sum(-1).mean().sqrt())


def _dictionary_of(
    model: Any,
    report: notebook.Notebook,
    pool: torch.Tensor,
    scale: float,
    seed: int,
    kind: str,
    weight: float,
    steps: int,
    labelled: str,
) -> dict[str, float]:
    """Trained by the steps of `sae.train` on one pool for all, which saves the harvest; measured by `sae.eval`."""
    sparsity = {"type": kind, "weight": weight} | ({"anneal_start": steps // 5} if kind == "p_anneal" else {})
    params = TrainParams(
        **_brief(steps, 512), sparsity=sparsity, d_sae=512, lr=1e-3, lr_warmup=100, sparsity_warmup=200, normalize=True
    )
    coder, order = Coder(params, pool.shape[1], seed), torch.Generator().manual_seed(seed)
    for step in range(steps):
        coder.step(step, pool[torch.randint(len(pool), (params.batch,), generator=order)] / scale)
    dictionary = coder.dictionary(scale, pool[: params.batch] / scale, metadata(params, report, steps))
    sae = report.artifact("sae", dict(dictionary.weights), dictionary.config())
    asked = {"sae": sae, "data": labelled, "labels": labelled, "context": 59, "model_batch": 50}
    result = notebook.run(_EVALUATE, model, asked, report)
    return {name: _heldout(result.metrics, name) for name in _NAMES}


def _heldout(metrics: tuple[Metric, ...], name: str) -> float:
    """As the paper has it: coverage is of the texts that chose, the rest of others."""
    wanted = "train" if name.startswith("coverage") else "heldout"
    return next(metric.value for metric in metrics if metric.name == name and metric.split == wanted)


def _probe(model: Any, report: notebook.Notebook) -> dict[str, float]:
    """Least squares onto {empty, mine, yours} of each square, on 600 games; F1 of mine and yours on 200 others."""
    harvester = Harvester.of(model, "resid_post", LAYER, report, 0)

    def of_games(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, labels = (torch.from_numpy(one[:, :59].copy()) for one in othello.games(n, seed))
        there = tokens >= 0
        states = torch.cat([harvester.states(some.clamp_min(0)) for some in tokens.split(100)])[there]
        return torch.cat([states, torch.ones(len(states), 1)], 1).double(), labels[there].double()

    x, y = of_games(600, 900_002)
    empty = 1 - y[:, :64] - y[:, 64:]
    target = torch.cat([empty, y], 1)
    weights = torch.linalg.solve(x.T @ x + 1e-5 * len(x) * torch.eye(x.shape[1]).double(), x.T @ target)
    x, y = of_games(200, 900_003)
    guessed = (x @ weights).reshape(len(x), 3, 64).argmax(1)
    said = torch.cat([guessed == 1, guessed == 2], 1)
    both = (said & (y > 0)).sum().double()
    return {"f1": float(2 * both / (said.sum() + y.sum())), "n": float(len(x))}


# --- the library's steps


def library(rows: Rows) -> dict[str, Any]:
    """The largest difference of any weight after 300 steps of ours and of dictionary_learning's from equal weights."""
    if importlib.util.find_spec("dictionary_learning") is None:
        return {"skipped": "dictionary_learning cannot be imported (pip install --no-deps dictionary-learning==0.1.0)"}
    import library_steps

    found = library_steps.compare(rows.add)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["synthetic", "othello", "library"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[21, 22, 23])
    parser.add_argument("--steps", type=int, default=1200, help="of each dictionary on Othello")
    parser.add_argument("--folder", default="artifacts", help="where the dictionaries go")
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    report = notebook.Notebook(asked.folder, seed=asked.seeds[0], bar=False)
    rows = Rows(asked.json)
    parts: dict[str, Callable[[], Any]] = {
        "synthetic": lambda: synthetic(rows, asked.seeds),
        "othello": lambda: othellos(rows, asked.seeds, report, asked.steps),
        "library": lambda: library(rows),
    }
    for part in asked.parts:
        begun = time.process_time()
        rows.judged[part] = parts[part]()
        rows.judged[part]["cpu_seconds"] = round(time.process_time() - begun)
        print(json.dumps({part: rows.judged[part]}, indent=1), flush=True)
        rows.keep()


if __name__ == "__main__":
    main()
