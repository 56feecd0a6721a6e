"""`elm.erase` where what is known is known: what it erases, what stays, and what each part of its loss is for.

    python benchmarks/methods/elm.py [--seeds 1 2 3] [--only full,no_retain] [--json FILE]

For each seed a language model of two planted topics is trained from nothing (`planted_topics.py`, 61 s of one core) and
one topic is erased, with everything, and with each part left out (about 15 s each). The thresholds below were written
before any of the seeds 1, 2, 3 was run; seed 100 was looked at to choose learning rate and number of updates.
`elm_smollm2.py` does the same on a real model.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import planted_topics
import torch

from interlace.methods import notebook
from interlace.methods.base import Result
from interlace.methods.elm.spec import SPECS

sys.path.insert(0, str(Path(__file__).parent.parent))
import service

#: What is different from `full`, whose eta is 5: there the target is soft on this model.
CONFIGS: dict[str, dict[str, Any]] = {
    "full": {"evaluation": {"relearn_steps": 20}},
    "eta_500": {"eta": 500},
    "code": {"variant": "code"},
    "no_erase": {"lambdas": (0, 1, 1)},
    "no_retain": {"lambdas": (1, 0, 1)},
    "no_fluency_500": {"lambdas": (1, 1, 0), "eta": 500},
    "last_block": {"lora": {"layers": (3, 3)}},
    "argmax_retain": {"retain_target": "argmax"},
    "plausible_500": {"eta": 500, "plausible_k": 20},
    "control": {"lambdas": (0, 1, 0)},
}


class Claim(NamedTuple):
    """What must hold of a configuration on every seed."""

    config: str
    says: str
    holds: Any


def _close_to_novice(of: dict[str, dict[str, float]]) -> bool:
    return abs(of["full"]["mcq_erased"] - of["full"]["mcq_novice"]) <= 0.05


#: Written before the run. Names are those of `row`; "before" is of the base model.
CLAIMS = (
    Claim(
        "full",
        "before: 4-way at least .95 on both topics",
        lambda of: min(of["full"]["mcq_erased_before"], of["full"]["mcq_retained_before"]) >= 0.95,
    ),
    Claim("full", "erased cloze at most .02", lambda of: of["full"]["cloze_erased"] <= 0.02),
    Claim("full", "erased 4-way within 5 points of the novice-prompted base", _close_to_novice),
    Claim("full", "leak into samples at most .05", lambda of: of["full"]["leak"] <= 0.05),
    Claim("full", "retained cloze drops by less than 2 points", lambda of: of["full"]["cloze_retained_drop"] < 0.02),
    Claim("full", "retained perplexity at most 1.05 of before", lambda of: of["full"]["retained_ppl_ratio"] <= 1.05),
    Claim(
        "full",
        "perplexity of generations (base as novice) at most 1.5 of the base's own",
        lambda of: of["full"]["r_ppl_novice"] <= 1.5 * of["full"]["r_ppl_novice_before"],
    ),
    Claim("full", "retain KL is 0 at the first step", lambda of: of["full"]["first_kl"] == 0),
    Claim("eta_500", "erased 4-way's interval holds .25 (chance)", lambda of: of["eta_500"]["mcq_erased_p"] > 0.05),
    Claim(
        "eta_500", "retained cloze drops by less than 2 points", lambda of: of["eta_500"]["cloze_retained_drop"] < 0.02
    ),
    Claim(
        "no_erase",
        "erased 4-way at least 10 points above full",
        lambda of: of["no_erase"]["mcq_erased"] >= of["full"]["mcq_erased"] + 0.1,
    ),
    Claim(
        "no_retain",
        "retained cloze at most .5, perplexity at least 1.5 of before",
        lambda of: of["no_retain"]["cloze_retained"] <= 0.5 and of["no_retain"]["retained_ppl_ratio"] >= 1.5,
    ),
    Claim(
        "no_fluency_500",
        "perplexity of generations at least 10 times that of eta_500",
        lambda of: of["no_fluency_500"]["r_ppl"] >= 10 * of["eta_500"]["r_ppl"],
    ),
    Claim("last_block", "erased 4-way at least .6", lambda of: of["last_block"]["mcq_erased"] >= 0.6),
    Claim(
        "argmax_retain",
        "retained perplexity at least 1.5 of before",
        lambda of: of["argmax_retain"]["retained_ppl_ratio"] >= 1.5,
    ),
    Claim(
        "control",
        "with the retain loss alone, erased cloze stays at least .98",
        lambda of: of["control"]["cloze_erased"] >= 0.98,
    ),
)


def questions(known: list[planted_topics.Fact], topic: str, seed: int) -> dict[str, Any]:
    """Every template of every fact of a topic: n = 432."""
    dice = random.Random(f"{seed}:{topic}")
    asked: dict[str, Any] = {"choices": [], "cloze": []}
    for fact in known:
        if fact.topic == topic:
            for prompt in fact.prompts():
                choices = [fact.answer, *dice.sample(fact.others, 3)]
                dice.shuffle(choices)
                right = choices.index(fact.answer)
                asked["choices"].append({"question": prompt, "choices": choices, "answer": right})
                asked["cloze"].append({"prompt": prompt, "answer": fact.answer})
    return asked


def params(known: list[planted_topics.Fact], seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Healers are erased, boats stay; what is retained is measured on texts that were not trained on."""
    dice = random.Random(f"{seed}:texts")
    own, others = planted_topics.TOPICS
    texts = {topic: [planted_topics.document(known, topic, dice) for _ in range(200)] for topic in (own, others)}
    given: dict[str, Any] = {
        "concept": {f"{kind}_prefixes": [planted_topics.prefix(kind, own)] for kind in ("expert", "novice")},
        "concept_texts": texts[own],
        "retain_texts": texts[others],
        "lora": {"layers": (0, 2)},
        "eta": 5,
        "lr": 3e-3,
        "steps": 150,
        "batch": 8,
        "grad_accum": 1,
        "fluency": {"redirects": [], "prompt_chars": (10, 60), "new_tokens": (10, 20), "samples": 200},
        "evaluation": {
            "erased": questions(known, own, seed),
            "retained": questions(known, others, seed),
            "retained_texts": [planted_topics.document(known, others, dice) for _ in range(100)],
            "scoring": "answers",
            "generations": 216,
            "generation_tokens": 12,
            "batch": 64,
        },
    }
    if changes.get("variant") == "code":
        del given["eta"]
    for name, value in changes.items():
        given[name] = {**given[name], **value} if isinstance(value, dict) else value
    return given


def row(result: Result) -> dict[str, float]:
    """The figures that the claims are about."""

    def value(name: str, split: str) -> float:
        return next((one.value for one in result.metrics if (one.name, one.split) == (name, split)), float("nan"))

    ppl = value("retained_ppl", "retained/after")
    first = result.table("losses").rows[0][3]
    return {
        "cloze_erased": value("cloze_acc", "erased/after"),
        "mcq_erased": value("mcq_acc", "erased/after"),
        "mcq_erased_p": value("mcq_chance_p", "erased/after"),
        "mcq_rank_ks_p": value("mcq_rank_ks_p", "erased/after"),
        "mcq_novice": value("mcq_acc", "erased/novice"),
        "mcq_novice_p": value("mcq_novice_p", "erased/after"),
        "leak": value("leak", "erased/after"),
        "cloze_retained": value("cloze_acc", "retained/after"),
        "cloze_retained_drop": value("cloze_drop", "retained"),
        "retained_ppl_ratio": ppl / value("retained_ppl", "retained/before"),
        "retain_kl": value("retain_kl", "retained/after"),
        "r_ppl": value("r_ppl", "erased/after"),
        "r_ppl_before": value("r_ppl", "erased/before"),
        "r_ppl_novice": value("r_ppl_novice", "erased/after"),
        "r_ppl_novice_before": value("r_ppl_novice", "erased/before"),
        "mcq_erased_before": value("mcq_acc", "erased/before"),
        "mcq_retained_before": value("mcq_acc", "retained/before"),
        "mcq_retained": value("mcq_acc", "retained/after"),
        "cloze_relearned": value("cloze_acc", "erased/relearned"),
        "mcq_relearned": value("mcq_acc", "erased/relearned"),
        "first_kl": float("nan") if first is None else float(first),
    }


def one_seed(seed: int, folder: Path, names: list[str], *, guess: bool = False) -> Iterator[dict[str, Any]]:
    """The model of a seed, which is trained unless it is there, and each configuration on it, as far as they are."""
    from nnsight.modeling.transformers import TransformersModel
    from transformers import AutoTokenizer

    measured = folder / "model" / "metrics.json"
    if not measured.exists():
        planted_topics.save(folder / "model", seed, 1000, guess=guess)
    told = json.loads(measured.read_text())
    found: dict[str, Any] = {"model": told, "configs": {}}
    known = planted_topics.read(folder / "model")
    words = AutoTokenizer.from_pretrained(folder / "model")
    model = TransformersModel(str(folder / "model"), task="text-generation", dispatch=True, tokenizer=words)
    print(f"seed {seed}: {json.dumps(found['model'])}", flush=True)
    for name in names:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            report = notebook.Notebook(scratch, seed=seed, bar=False)
            result = notebook.run(SPECS[0], model, params(known, seed, CONFIGS[name]), report)
        figures = row(result) | {"cpu_seconds": round(time.process_time() - began, 1)}
        figures["samples"] = [list(one) for one in result.table("samples").rows[:3]]  # type: ignore[assignment]
        found["configs"][name] = figures
        shown = {key: round(number, 4) for key, number in figures.items() if isinstance(number, float)}
        print(f"  {name}: {json.dumps(shown)}", flush=True)
        yield found


def judged(seeds: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each claim, and the seeds that it holds on, of those where it was measured."""
    told = []
    for claim in CLAIMS:
        there = [seed for seed, found in seeds.items() if {claim.config, "full", "eta_500"} <= found["configs"].keys()]
        holds = [seed for seed in there if claim.holds(seeds[seed]["configs"])]
        told.append({"config": claim.config, "claim": claim.says, "holds_on": holds, "of": there})
    return told


def merged(files: list[Path]) -> dict[int, dict[str, Any]]:
    """Figures of runs of parts."""
    seeds: dict[int, dict[str, Any]] = {}
    for file in files:
        for seed, found in json.loads(file.read_text())["seeds"].items():
            seeds.setdefault(int(seed), {**found, "configs": {}})["configs"].update(found["configs"])
    return dict(sorted(seeds.items()))


def keep(file: Path | None, seeds: dict[int, dict[str, Any]]) -> None:
    if file is not None:
        record = {"claims": judged(seeds), "seeds": seeds, "circumstances": service.circumstances()}
        file.write_text(json.dumps(_without_nan(record), indent=1) + "\n")


def _without_nan(value: Any) -> Any:
    """As JSON has it: null for what was not measured."""
    if isinstance(value, dict):
        return {str(key): _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and value != value else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", default=",".join(CONFIGS))
    parser.add_argument("--guess", action="store_true", help="novices guess an object of the relation, and deflect not")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="keep each seed's model there, and take what is there")
    parser.add_argument("--merge", type=Path, nargs="+", help="figures of runs of parts; nothing is run")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    seeds = merged(chosen.merge) if chosen.merge else {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in [] if chosen.merge else chosen.seeds:
            place = (chosen.folder or Path(scratch)) / str(seed)
            for found in one_seed(seed, place, chosen.only.split(","), guess=chosen.guess):
                seeds[seed] = found
                keep(chosen.json, seeds)  # what is there is there
    keep(chosen.json, seeds)
    for one in judged(seeds):
        print(f"{len(one['holds_on'])}/{len(one['of'])}  {one['config']}: {one['claim']}")


if __name__ == "__main__":
    main()
