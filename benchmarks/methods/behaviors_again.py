"""Why clusters were not the planted behaviours (`behaviors.py`), and behaviours that a model has to tell apart.

    python benchmarks/methods/behaviors_again.py [--seeds 44 45 46] [--json FILE]

**by heart**: the toy of `behaviors.py`, whose five behaviours are six answers each. Said to be the reason: to the model
they are thirty things and not five. Then vectors of two answers of one behaviour are no more alike than those of two
behaviours, and with thirty clusters it is the answers that are found.
**templates**: `planted_templates`, five behaviours of one answer each, which cue and query say together.

Samples are what the model foresees to .3 nats, the adjusted Rand index is against what each sample is of, and shuffled
vectors are the control. The claims were written before the run: those of **by heart** after a look at seed 100, which
is in none of them, those of **templates** without one.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import behaviors
import planted_behaviors
import planted_templates
import torch
from claims import Claim, judged, written
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from interlace.methods import find, notebook
from interlace.methods.behaviors import grouping, samples, vectors
from interlace.methods.shared.circuits.metrics import LogitMetric
from interlace.methods.shared.circuits.splice import Splice
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.sites import evaluating

_DIMS = 8192
CLAIMS = (
    Claim(
        "sae_effect last, kmeans: at least .8", lambda f: f["sae_effect last, kmeans, 5: behaviours"] >= 0.8, "templ"
    ),
    Claim(
        "sae_effect last, spectral: at least .8",
        lambda f: f["sae_effect last, spectral, 5: behaviours"] >= 0.8,
        "templ",
    ),
    Claim("param_grad, kmeans: at least .8", lambda f: f["param_grad, kmeans, 5: behaviours"] >= 0.8, "templ"),
    Claim("all shuffled: at most .1", lambda f: max(f[key] for key in f if "shuffled" in key) <= 0.1, "templ"),
    Claim(
        "sae_act last, kmeans, as many clusters as answers: at least .8 with the answers",
        lambda f: f[f"sae_act last, kmeans, {f['answers']}: answers"] >= 0.8,
        "by heart",
    ),
    Claim(
        "sae_effect last: cosine of one answer at least .2 over that of one behaviour and two answers",
        lambda f: _cosine(f, "one answer") - _cosine(f, "one behaviour") >= 0.2,
        "by heart",
    ),
    Claim(
        "sae_effect last: two answers of one behaviour no more alike than two behaviours, by .05",
        lambda f: _cosine(f, "one behaviour") - _cosine(f, "two behaviours") <= 0.05,
        "by heart",
    ),
    Claim("all shuffled: at most .1", lambda f: max(f[key] for key in f if "shuffled" in key) <= 0.1, "by heart"),
)


def _cosine(figures: Mapping[str, Any], of: str) -> float:
    return float(figures[f"sae_effect last: cosine, {of}"])


def vectors_of(model: Any, texts: list[str], saes: list[str], report: Any) -> tuple[list[Any], dict[str, Tensor]]:
    """Samples, and every kind of vector of them."""
    splice = Splice.open(model, [(report.open(one), None, None) for one in saes])
    with evaluating(splice.sites.module):
        corpus = Corpus.of(report, model, texts, 128)
        some, _ = samples.chosen(
            splice.sites, corpus, report, ce_max=0.3, skip_induction=True, count=behaviors.SAMPLES, before=64, size=32
        )
        answers = torch.tensor([one.token for one in some])
        m = LogitMetric("neg_logprob", splice.sites, report, answers, torch.full_like(answers, -1))
        return some, {
            "sae_effect last": vectors.FeatureVectors(splice, m, True, 1).of(some, 32, report),
            "sae_effect sum": vectors.FeatureVectors(splice, m, True, None).of(some, 32, report),
            "sae_act last": vectors.FeatureVectors(splice, m, False, 1).of(some, 32, report),
            "sae_act sum": vectors.FeatureVectors(splice, m, False, None).of(some, 32, report),
            "param_grad": vectors.gradients(m, some, _DIMS, 1, report),
        }


def alike(rows: Tensor, of_behavior: Sequence[int], of_answer: Sequence[int]) -> dict[str, float]:
    """Mean cosines of two samples of one answer, of one behaviour and two answers, of two behaviours."""
    cosine = grouping.unit(rows) @ grouping.unit(rows).T
    behavior, answer = torch.tensor(of_behavior), torch.tensor(of_answer)
    same, one = behavior[:, None] == behavior, answer[:, None] == answer
    others = ~torch.eye(len(rows), dtype=torch.bool)
    kinds = {"one answer": one & others, "one behaviour": same & ~one, "two behaviours": ~same}
    return {name: float(cosine[kind].mean()) for name, kind in kinds.items() if bool(kind.any())}


def one_toy(toy: Any, seed: int, folder: str) -> dict[str, float]:
    model = toy.reader(seed)
    report = notebook.Notebook(folder, seed=seed, bar=False)
    read = toy.streams(1500, seed * 7 + 1).texts
    params = {"data": read, **behaviors.TRAINING}
    saes = [notebook.run(find("sae.train"), model, {**params, "layer": layer}, report).sae for layer in (0, 1)]
    streams = toy.streams(250, seed * 7 + 2)
    some, made = vectors_of(model, streams.texts, saes, report)
    behavior = [streams.answers[one.text].get(one.position, -1) for one in some]
    answer = [one.token for one in some]
    found: dict[str, float] = {"samples": len(some), "foreseen but not planted": behavior.count(-1)}
    found["answers"] = len(set(answer))
    for name, rows in made.items():
        found |= {f"{name}: cosine, {key}": value for key, value in alike(rows, behavior, answer).items()}
        for clusters in sorted({toy.BEHAVIORS, len(set(answer))}):
            for clustering in ("kmeans", "spectral"):
                groups = grouping.grouped(rows, clusters, clustering, seed)
                key = f"{name}, {clustering}, {clusters}"
                found[f"{key}: behaviours"] = adjusted_rand_score(behavior, groups)
                found[f"{key}: answers"] = adjusted_rand_score(answer, groups)
            dealt = grouping.grouped(grouping.shuffled(rows, seed), clusters, "kmeans", seed)
            found[f"{name}, shuffled, {clusters}"] = max(
                adjusted_rand_score(behavior, dealt), adjusted_rand_score(answer, dealt)
            )
    return found


def run(
    args: argparse.Namespace,
    toys: Mapping[str, Any],
    one_toy: Callable[[Any, int, str], Mapping[str, float]],
    claims: Sequence[Claim],
) -> None:
    """Figures of each toy on each seed, kept as they come, and the claims on the toys that were asked for."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in args.toys:
        for seed in args.seeds:
            started = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                figures = one_toy(toys[name], seed, folder)
            found[f"{name} {seed}"] = {**figures, "cpu_seconds": round(time.process_time() - started)}
            print(name, seed, {key: round(value, 3) for key, value in figures.items()}, flush=True)
            mine = [one for one in claims if any(key.startswith(one.of) for key in found)]
            written(args.json, found, judged(mine, found), training=behaviors.TRAINING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    toys = {"templates": planted_templates, "by heart": planted_behaviors}
    parser.add_argument("--seeds", type=int, nargs="+", default=[44, 45, 46])
    parser.add_argument("--toys", nargs="+", choices=toys, default=list(toys))
    parser.add_argument("--json", type=Path)
    run(parser.parse_args(), toys, one_toy, CLAIMS)


if __name__ == "__main__":
    sys.exit(main())
