"""`edit.rome` on planted names, beside its controls, and on SmolLM2.

    python benchmarks/methods/rome.py [--seeds 1 2 3] [--edits 40] [--real 0] [--json FILE]

For each seed the models of `planted_names.py` are trained and facts of theirs are changed, each by itself, in the first
blocks and in the last; controls are the unedited model, the raw key and a random one. The claims were written before
any of these seeds was run. The value may change by 12 times its norm; the papers' models, of 50 times the width, are
allowed 4. `--real N` changes N capitals in SmolLM2's block 4: about a minute of one core each.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import known_facts
import planted_names
import torch
from claims import Claim, judged, smollm2, written

from interlace.methods import notebook
from interlace.methods.base import Result
from interlace.methods.rome.spec import SPECS

_NAMES = ("ES", "PS", "NS", "S", "ES_acc", "PS_acc", "NS_acc", "other_relations", "unrelated")
_EARLY = {"gpt": (0, 1, 2), "mamba": (0, 1)}
_LAST = {"gpt": 5, "mamba": 3}
CLAIMS = (
    Claim("ES .95 in the best block", lambda of: of["best.ES"] >= 0.95, "planted"),
    Claim("PS .6 there, on a wording that the edit has not seen", lambda of: of["best.PS"] >= 0.6, "planted"),
    Claim("NS .75 there", lambda of: of["best.NS"] >= 0.75, "planted"),
    Claim("S .8 there", lambda of: of["best.S"] >= 0.8, "planted"),
    Claim("unrelated facts kept .9 there", lambda of: of["best.unrelated"] >= 0.9, "planted"),
    Claim("the unedited model: ES .05 at most", lambda of: of["before.ES"] <= 0.05, "planted"),
    Claim("edited in the last block, at the subject: ES .2 at most", lambda of: of["late.ES"] <= 0.2, "planted"),
    Claim("the raw key: NS lower by .3", lambda of: of["best.NS"] - of["raw.NS"] >= 0.3, "planted-gpt"),
    Claim(
        "a random key: unrelated facts lower by .3",
        lambda of: of["best.unrelated"] - of["random.unrelated"] >= 0.3,
        "planted",
    ),
    Claim("ES 1 for every capital", lambda of: of["edited.ES"] == 1, "SmolLM2"),
    Claim("neighbours kept: NS within .1 of before", lambda of: of["edited.NS"] >= of["before.NS"] - 0.1, "SmolLM2"),
    Claim("unrelated facts kept .9", lambda of: of["edited.unrelated"] >= 0.9, "SmolLM2"),
)


def scores(result: Result, split: str) -> dict[str, float]:
    return {one.name: round(one.value, 4) for one in result.metrics if one.split == split and one.name in _NAMES}


def planted(kind: str, seed: int, number: int, folder: Path) -> dict[str, float]:
    made = planted_names.trained(kind, seed)
    asked = planted_names.requests(made, number)
    touched = {one["subject"] for one in asked}
    others = [one for one in made.facts if one.subject not in touched] or list(made.facts)
    base = {
        "requests": asked,
        "clamp": 12,
        "steps": 40,
        "sampled": [],
        "texts": planted_names.sentences(made.facts),
        "unrelated": [
            {"prompt": planted_names.TEMPLATES[one.relation][0].replace("{}", one.subject), "answer": one.answer}
            for one in others[::5][:20]
        ],
    }

    def edited(layer: int, **more: Any) -> Result:
        report = notebook.Notebook(folder, seed=seed, bar=False)
        return notebook.run(SPECS[0], made.model, {**base, **more, "layer": layer}, report)

    found: dict[str, float] = {"accuracy": made.accuracy, "edits": float(number)}
    early = {layer: edited(layer) for layer in _EARLY[kind]}
    best = max(early, key=lambda layer: scores(early[layer], "after")["S"])
    runs = {"best": early[best], "late": edited(_LAST[kind]), "raw": edited(best, key="raw", texts=None)}
    runs["random"] = edited(best, key="random", texts=None)
    for name, result in [*runs.items(), *((f"layer{layer}", one) for layer, one in early.items())]:
        found |= {f"{name}.{metric}": value for metric, value in scores(result, "after").items()}
    return found | {f"before.{name}": value for name, value in scores(early[best], "before").items()} | {"best": best}


def real(number: int, folder: Path) -> dict[str, float]:
    model = smollm2()
    report = notebook.Notebook(folder, bar=True)
    texts = [one["text"] + " " + one["answer"] + "." for one in known_facts.prompts()]
    texts += [f"{one['prompt']} {one['answer']}." for one in known_facts.UNRELATED]
    params = {
        "requests": known_facts.requests(number),
        "layer": 4,
        "texts": texts,
        "ridge": 0.01,
        "sampled": [[4, 5]],
        "unrelated": known_facts.UNRELATED,
    }
    result = notebook.run(SPECS[0], model, params, report)
    raw = notebook.run(SPECS[0], model, {**params, "key": "random", "texts": None, "steps": 8}, report)
    found: dict[str, float] = {"edits": float(number), "cov_tokens": float(result.cov_tokens), **report.cost}  # type: ignore[attr-defined]
    for name, one, split in (("before", result, "before"), ("edited", result, "after"), ("random", raw, "after")):
        found |= {f"{name}.{metric}": value for metric, value in scores(one, split).items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--edits", type=int, default=12)
    parser.add_argument("--real", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    every: dict[str, Mapping[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for seed in arguments.seeds:
            for kind in ("gpt", "mamba"):
                begun = time.process_time()
                found = planted(kind, seed, arguments.edits, Path(name))
                every[f"planted-{kind}-{seed}"] = {**found, "cpu_seconds": round(time.process_time() - begun, 1)}
                print(f"planted-{kind}-{seed}", every[f"planted-{kind}-{seed}"], flush=True)
        if arguments.real:
            begun = time.process_time()
            every["SmolLM2"] = {
                **real(arguments.real, Path(name)),
                "cpu_seconds": round(time.process_time() - begun, 1),
            }
            print("SmolLM2", every["SmolLM2"], flush=True)
    mine = [one for one in CLAIMS if any(model.startswith(one.of) for model in every)]
    written(arguments.json, every, judged(mine, every))


if __name__ == "__main__":
    main()
