"""`elm.erase` nearer to chance: the erase loss at a temperature, beside the same without.

    python benchmarks/methods/elm_chance.py [--seeds 61 62 63] [--json FILE] [--folder FOLDER]

`elm.py` and `elm_reference.py` found the erased topic at .40 to .59 where a model that was never taught it is at .26
to .28: the losses act on likely tokens, and leave the order of the unlikely ones, which multiple choice asks for. Here
the erase loss is compared at `distil_temperature` 10, where that order counts, with three times its weight; `plain` is
the same at temperature 1. About 85 CPU-seconds a seed for the model, and 80 for both.

All was chosen on seed 100: .33 after 150 updates (p < .001), .29 after 250, .257 after 300 (p .74), .24 after 350
(p .62). The claims were written before the seeds 61, 62, 63 were run. 432 questions are of 108 facts, so that p, which
takes each for one of its own, is too small.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import elm
import elm_reference
import planted_topics
import torch
from claims import Claim, judged, written

SETTING: dict[str, Any] = {"eta": 2, "lambdas": (3, 1, 1), "steps": 300}
ARMS: dict[str, dict[str, Any]] = {
    "warm": {"distil_temperature": 10, "evaluation": {"relearn_steps": 20, "probes": False}},
    "plain": {"evaluation": {"probes": False}},
}
CLAIMS = (
    Claim("warm: 4-way as a guesser's, two-sided, p > .05", lambda of: of["warm.mcq_erased_p"] > 0.05),
    Claim("warm: 4-way in [.20, .30]", lambda of: 0.20 <= of["warm.mcq_erased"] <= 0.30),
    Claim(
        "warm: 4-way at least 10 points nearer to chance than plain",
        lambda of: abs(of["warm.mcq_erased"] - 0.25) <= abs(of["plain.mcq_erased"] - 0.25) - 0.1,
    ),
    Claim("warm: erased cloze at most .02", lambda of: of["warm.cloze_erased"] <= 0.02),
    Claim("warm: leak into samples at most .05", lambda of: of["warm.leak"] <= 0.05),
    Claim("warm: retained cloze drops by less than 2 points", lambda of: of["warm.cloze_retained_drop"] < 0.02),
    Claim("warm: retained perplexity at most 1.05 of before", lambda of: of["warm.retained_ppl_ratio"] <= 1.05),
    Claim(
        "warm: perplexity of generations (base as novice) at most 1.5 of the base's own",
        lambda of: of["warm.r_ppl_novice"] <= 1.5 * of["warm.r_ppl_novice_before"],
    ),
    Claim("warm: cloze after 20 updates of the attack at most .5", lambda of: of["warm.cloze_relearned"] <= 0.5),
)


def one_seed(folder: Path, seed: int) -> dict[str, Any]:
    if not (folder / "metrics.json").exists():
        planted_topics.save(folder, seed, 1000)
    known, model = planted_topics.read(folder), elm_reference.opened(folder)
    found: dict[str, Any] = {}
    for name, changes in ARMS.items():
        figures = elm.row(elm_reference.run(model, elm.params(known, seed, SETTING | changes), seed))
        found |= {f"{name}.{key}": None if value != value else value for key, value in figures.items()}
        print(f"  {name}: {json.dumps({key: round(value, 4) for key, value in figures.items()})}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[61, 62, 63])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="keep each seed's model there, and take what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    every: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in args.seeds:
            began = time.process_time()
            found = one_seed((args.folder or Path(scratch)) / str(seed), seed)
            every[f"seed {seed}"] = {**found, "cpu_seconds": round(time.process_time() - began)}
            written(args.json, every, judged(CLAIMS, every))


if __name__ == "__main__":
    sys.exit(main())
