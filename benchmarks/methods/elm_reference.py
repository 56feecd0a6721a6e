"""`elm.erase` beside the model that one would like to have: one that was never taught the topic.

    python benchmarks/methods/elm_reference.py [--seeds 11 12 13] [--json FILE]

`elm.py` asked that an erased topic be at chance, and it never was; nor is the base model that plays the novice, from
which the target is made. Here an erased model is held against both references: the base model behind the novice's
prefix, item by item, and a model trained from nothing on the same texts, but that of healers it has read only what a
novice says. The attack is made on both. And since the retained topic lost more than was asked for on one seed of three,
a second erasure has twice the weight on the retain loss, which the paper's Table 5 has, too.

The claims were written before the run. They are of 432 items each, settings are those of `elm.py`. Seed 100, which is
in no claim, had .53 (novice .51, p .14) with the published weights and .54 (p .03) with twice the retain loss, neither
of which lost any of the retained topic; the never-taught model had not been looked at. That an erased model is as one
that was never taught is not expected: it is what "erased" would mean.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import elm
import planted_topics
import torch
from claims import Claim, judged, written
from nnsight.modeling.transformers import TransformersModel
from scipy.stats import fisher_exact
from transformers import AutoTokenizer

from interlace.methods import notebook
from interlace.methods.base import Result
from interlace.methods.elm.spec import SPECS

_ATTACK = {"evaluation": {"relearn_steps": 20}}
ERASED: dict[str, dict[str, Any]] = {"erased": _ATTACK, "twice": {"lambdas": (1, 2, 1)}}
CLAIMS = (
    Claim(
        "never taught: cloze at most .02, 4-way as a guesser's (p > .05)",
        lambda of: of["never.cloze"] <= 0.02 and of["never.mcq_chance_p"] > 0.05,
    ),
    Claim("erased: cloze at most .02, as never taught", lambda of: of["erased.cloze_erased"] <= 0.02),
    Claim("erased: 4-way as the base that plays the novice, p > .05", lambda of: of["erased.mcq_novice_p"] > 0.05),
    Claim("twice: the same", lambda of: of["twice.mcq_novice_p"] > 0.05),
    Claim("erased: 4-way as never taught, p > .05", lambda of: of["erased.as_never_p"] > 0.05),
    Claim("erased: retained cloze drops by less than 2 points", lambda of: of["erased.cloze_retained_drop"] < 0.02),
    Claim("twice: retained cloze drops by less than 2 points", lambda of: of["twice.cloze_retained_drop"] < 0.02),
    Claim("twice: retained perplexity at most 1.05 of before", lambda of: of["twice.retained_ppl_ratio"] <= 1.05),
    Claim("twice: erased cloze at most .02", lambda of: of["twice.cloze_erased"] <= 0.02),
    Claim(
        "relearning: erased cloze at most 10 points above never taught after the same attack",
        lambda of: of["erased.cloze_relearned"] <= of["never.cloze_relearned"] + 0.1,
    ),
)


def opened(folder: Path) -> Any:
    words = AutoTokenizer.from_pretrained(folder)
    return TransformersModel(str(folder), task="text-generation", dispatch=True, tokenizer=words)


def run(model: Any, asked: dict[str, Any], seed: int) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        return notebook.run(SPECS[0], model, asked, notebook.Notebook(scratch, seed=seed, bar=False))


def never_taught(folder: Path, seed: int) -> dict[str, float]:
    """What it knows, and what it knows after the attack."""
    told = planted_topics.save(folder, seed, 1000, untaught=planted_topics.TOPICS[0])
    known = planted_topics.read(folder)
    # One update of the retain loss, whose target is the model itself: nothing but the attack trains it.
    asked = elm.params(known, seed, {**_ATTACK, "lambdas": (0, 1, 0), "steps": 1})
    result = run(opened(folder), asked, seed)
    return {
        "never.cloze": result.metric("cloze_acc", "erased/before").value,
        "never.cloze_retained": result.metric("cloze_acc", "retained/before").value,
        "never.mcq": result.metric("mcq_acc", "erased/before").value,
        "never.mcq_chance_p": result.metric("mcq_chance_p", "erased/before").value,
        "never.cloze_relearned": result.metric("cloze_acc", "erased/relearned").value,
        "never.mcq_relearned": result.metric("mcq_acc", "erased/relearned").value,
        "never.cpu_seconds_of_training": told["cpu_seconds"],
    }


def one_seed(seed: int, folder: Path) -> dict[str, Any]:
    planted_topics.save(folder / "taught", seed, 1000)
    known, model = planted_topics.read(folder / "taught"), opened(folder / "taught")
    found: dict[str, Any] = {}
    for name, changes in ERASED.items():
        figures = elm.row(run(model, elm.params(known, seed, changes), seed))
        found |= {f"{name}.{key}": value for key, value in figures.items()}
        print(f"  {name}: {json.dumps({key: round(value, 4) for key, value in figures.items()})}", flush=True)
    found |= never_taught(folder / "never", seed)
    n = 432
    right = [round(n * found[key]) for key in ("erased.mcq_erased", "never.mcq")]
    found["erased.as_never_p"] = float(fisher_exact([[one, n - one] for one in right]).pvalue)
    return {key: None if value != value else value for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    every: dict[str, Any] = {}
    for seed in args.seeds:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            found = one_seed(seed, Path(folder))
        every[f"seed {seed}"] = {**found, "cpu_seconds": round(time.process_time() - began)}
        print(seed, every[f"seed {seed}"], flush=True)
        written(args.json, every, judged(CLAIMS, every))


if __name__ == "__main__":
    sys.exit(main())
