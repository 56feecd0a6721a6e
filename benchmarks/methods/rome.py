"""`edit.rome` on planted names, beside its controls, and on SmolLM2.

    python benchmarks/methods/rome.py [--seeds 1 2 3] [--items 40] [--real 0] [--json FILE] [--picture FILE]

For each seed the models of `planted_names.py` are trained and facts of theirs are changed, each by itself, in the first
blocks and in the last; controls are the unedited model, the raw key and a random one. The claims were written before
any of these seeds was run. The value may change by 12 times its norm; the papers' models, of 50 times the width, are
allowed 4. `--real N` changes N capitals in SmolLM2's block 4, with the covariance of 20,000 tokens of the language
reference that every Python brings (13 times the projection's width; the papers take 100,000 samples of Wikipedia), and
again with a random key, of the same steps: about two minutes of one core each.
"""

from pathlib import Path
from pydoc_data import topics
from typing import Any

import experiment
import known_facts
import planted_names
from claims import Claim, smollm2

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
    Claim("the unedited model: ES .1 at most", lambda of: of["before.ES"] <= 0.1, "SmolLM2"),
    Claim("PS .6, on wordings that the edit has not seen", lambda of: of["edited.PS"] >= 0.6, "SmolLM2"),
    Claim("S lower by .1 with a random key", lambda of: of["edited.S"] - of["random.S"] >= 0.1, "SmolLM2"),
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


def real(number: int, folder: Path, picture: Path | None) -> dict[str, float]:
    model = smollm2()
    report = notebook.Notebook(folder, bar=False)
    params = {
        "requests": known_facts.requests(number),
        "layer": 4,
        "texts": [topics.topics[name] for name in sorted(topics.topics)],
        "most_tokens": 20_000,
        "sampled": [[4, 5]],
        "unrelated": known_facts.UNRELATED,
    }
    result = notebook.run(SPECS[0], model, params, report)
    if picture is not None:
        result.plot().savefig(picture, dpi=90)
    found = {"edits": float(number), "cov_tokens": float(result.cov_tokens), "condition": float(result.condition or 0)}
    found |= {f"covariance.{name}": float(value) for name, value in report.cost.items()}
    random = notebook.run(SPECS[0], model, {**params, "key": "random", "texts": None}, report)
    for name, one, split in (("before", result, "before"), ("edited", result, "after"), ("random", random, "after")):
        found |= {f"{name}.{metric}": value for metric, value in scores(one, split).items()}
        for metric in ("ES", "PS", "NS"):
            of = one.metric(metric, split)
            low, high = of.ci95 or (float("nan"), float("nan"))
            found |= {f"{name}.{metric}.low": round(low, 4), f"{name}.{metric}.high": round(high, 4)}
            found[f"{name}.{metric}.n"] = float(of.n or 0)
    return found


if __name__ == "__main__":
    experiment.planted_and_real(__doc__, CLAIMS, planted, real)
