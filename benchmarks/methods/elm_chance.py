"""`elm.erase` until held-back questions are at chance: is what was not held back at chance, too?

    python benchmarks/methods/elm_chance.py [--seeds 71 72 73 74 75] [--json FILE] [--folder FOLDER]

`elm.py` and `elm_reference.py` found the erased topic at .40 to .59 where a model that was never taught it is at .26
to .28: the losses act on likely tokens, and leave the order of the unlikely ones, which multiple choice asks for. Here
the erase loss is compared at `distil_temperature` 10, where that order counts, and `stop_at_chance` chooses the number
of updates, which differs from model to model: after 300, seed 100 was at .25, 61 at .27 and 63 at .32. Four times as
many texts on the retained topic as in `elm.py` (800), as 200 leave out a quarter of what is asked of it. `control` is
the same with the retain loss alone. About 50 CPU-seconds a seed for the model, and 40 for the rest.

A model answers the four wordings of a fact alike (intraclass correlation .99, seed 100), so that a fact is one
observation, not four. Held back are, in every wording, half of the facts; measured is the other half, 54. p is of a
t-test of these facts' shares against .25, two-sided; its standard error is .047, so that one seed cannot tell .25 from
.35, and the facts of all seeds together (.021 for five) are tested, too. A guesser fails a test at .05 once in twenty;
the choice by held-back facts, which have the same error again, makes about one in six of it.

All was chosen on seeds 100, 61 and 63. The claims were written before the seeds 71 to 75 were run.
"""

import argparse
import json
import random
import statistics
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
from scipy.stats import ttest_1samp

from interlace.methods import notebook
from interlace.methods.elm import metrics
from interlace.methods.elm.language import Language
from interlace.methods.elm.spec import SPECS, EraseParams
from interlace.methods.shared import edits, intervals

RETAIN_TEXTS = 800
SETTING: dict[str, Any] = {"eta": 2, "lambdas": (3, 1, 1), "distil_temperature": 10, "steps": 900}
CLAIMS = (
    Claim(
        "before: 4-way at least .95 on both topics",
        lambda of: min(of["mcq_erased_before"], of["mcq_retained_before"]) >= 0.95,
        "seed",
    ),
    Claim("4-way as a guesser's, two-sided by fact, p > .05", lambda of: of["p"] > 0.05, "seed"),
    Claim("4-way in [.20, .30]", lambda of: 0.20 <= of["share"] <= 0.30, "seed"),
    Claim("facts of all seeds: 4-way as a guesser's, two-sided, p > .05", lambda of: of["p"] > 0.05, "all"),
    Claim("facts of all seeds: 4-way in [.20, .30]", lambda of: 0.20 <= of["share"] <= 0.30, "all"),
    Claim("erased cloze at most .02", lambda of: of["cloze_erased"] <= 0.02, "seed"),
    Claim("leak into samples at most .05", lambda of: of["leak"] <= 0.05, "seed"),
    Claim("retained cloze drops by less than 2 points", lambda of: of["cloze_retained_drop"] < 0.02, "seed"),
    Claim("retained 4-way drops by less than 2 points", lambda of: of["mcq_retained_drop"] < 0.02, "seed"),
    Claim("retained perplexity at most 1.05 of before", lambda of: of["retained_ppl_ratio"] <= 1.05, "seed"),
    Claim(
        "perplexity of generations (base as novice) at most 1.5 of the base's own",
        lambda of: of["r_ppl_novice"] <= 1.5 * of["r_ppl_novice_before"],
        "seed",
    ),
    Claim("cloze after 20 updates of the attack at most .5", lambda of: of["cloze_relearned"] <= 0.5, "seed"),
    Claim("control: 4-way at least .95", lambda of: of["control.mcq_erased"] >= 0.95, "seed"),
)


def split(known: list[planted_topics.Fact], seed: int) -> tuple[list[planted_topics.Fact], list[planted_topics.Fact]]:
    """Facts that are held back, and those that are measured: half of each topic and relation."""
    dice = random.Random(f"{seed}:split")
    measured: set[planted_topics.Fact] = set()
    for topic in planted_topics.TOPICS:
        for relation in range(3):
            own = [fact for fact in known if (fact.topic, fact.relation) == (topic, relation)]
            measured |= set(dice.sample(own, len(own) // 2))
    return [fact for fact in known if fact not in measured], [fact for fact in known if fact in measured]


def asked(known: list[planted_topics.Fact], seed: int) -> dict[str, Any]:
    held, measured = split(known, seed)
    own, other = planted_topics.TOPICS
    given = elm.params(known, seed, SETTING)
    dice = random.Random(f"{seed}:retain")
    given["retain_texts"] = [planted_topics.document(known, other, dice) for _ in range(RETAIN_TEXTS)]
    given["stop_at_chance"] = {
        "erased": elm.questions(held, own, seed)["choices"],
        "retained": {"cloze": elm.questions(held, other, seed)["cloze"]},
    }
    given["evaluation"] |= {
        "erased": elm.questions(measured, own, seed),
        "retained": elm.questions(measured, other, seed),
        "probes": False,
        "relearn_steps": 20,
    }
    return given


def by_fact(model: Any, report: notebook.Notebook, adapter: str, params: dict[str, Any]) -> list[float]:
    """Of each measured fact of the erased topic: the share of its wordings that the edited model answers right."""
    of = EraseParams.model_validate(params).evaluation
    with edits.attached(model, [report.open(adapter)]):
        right = metrics.choose(Language.of(model, report), of.erased.choices, of).right
    return [statistics.fmean(right[at : at + 4]) for at in range(0, len(right), 4)]


def one_seed(folder: Path, seed: int) -> tuple[dict[str, Any], list[float]]:
    if not (folder / "metrics.json").exists():
        planted_topics.save(folder, seed, 1000)
    known, model = planted_topics.read(folder), elm_reference.opened(folder)
    given = asked(known, seed)
    with tempfile.TemporaryDirectory() as scratch:
        report = notebook.Notebook(scratch, seed=seed, bar=False)
        result = notebook.run(SPECS[0], model, given, report)
        shares = by_fact(model, report, result.adapter, given)
    figures = elm.row(result) | {
        "mcq_retained_drop": result.metric("mcq_drop", "retained").value,
        "kept_step": result.metric("kept_step", "").value,
        "mcq_held_back": result.metric("mcq_acc", "held_back/after").value,
        **told(shares),
    }
    control = given | {"lambdas": (0, 1, 0), "steps": 40}
    figures["control.mcq_erased"] = elm_reference.run(model, control, seed).metric("mcq_acc", "erased/after").value
    figures = {key: value for key, value in figures.items() if value == value and key != "mcq_erased_p"}
    looks = [list(look) for look in result.table("looks").rows]
    print(f"  {seed}: {json.dumps(figures)}", flush=True)
    return figures | {"looks": looks, "shares": shares}, shares


def told(shares: list[float]) -> dict[str, Any]:
    """Facts against a guesser."""
    mean, interval = intervals.mean(shares)
    return {"facts": len(shares), "share": mean, "ci95": interval, "p": float(ttest_1samp(shares, 0.25).pvalue)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[71, 72, 73, 74, 75])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="keep each seed's model there, and take what is there")
    parser.add_argument("--merge", type=Path, nargs="+", help="figures of runs of some seeds each; nothing is run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    every: dict[str, Any] = {}
    facts: list[float] = []
    for file in args.merge or ():
        parts = json.loads(file.read_text())["figures"]
        every |= {name: of for name, of in parts.items() if name != "all"}
    if args.merge:
        every["all"] = told([share for of in every.values() for share in of["shares"]])
        written(args.json, every, judged(CLAIMS, every))
        return
    with tempfile.TemporaryDirectory() as scratch:
        for seed in args.seeds:
            began = time.process_time()
            found, shares = one_seed((args.folder or Path(scratch)) / str(seed), seed)
            facts += shares
            every[f"seed {seed}"] = {**found, "cpu_seconds": round(time.process_time() - began)}
            every["all"] = told(facts)
            written(args.json, every, judged(CLAIMS, every))


if __name__ == "__main__":
    sys.exit(main())
