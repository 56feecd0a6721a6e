"""`mediate`: what gradients miss, and what a subspace search finds where nothing is, on the models of tests/assets.

    python benchmarks/methods/mediate.py [--seeds 11 12 13] [--json FILE] [--picture FILE]

Pairs are countries of two continents, one number of tokens (the seed chooses them). Thresholds, written before the run:
attribution patching ranks mediators with a Spearman of at least .8 against exact patching on both models, integrated
gradients with no less than .05 below it; the last token at the last block carries the whole effect (1 +- .02); DAS with
k = 4 at the last token of block 4 reaches .8 of the whole state's interchange accuracy on held-out pairs, and in a
model of random weights at most .1 above chance. (The run has shown that the Mamba's whole state at that place has an
accuracy of 0: there the claim on DAS holds and says nothing.)
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from interlace.methods import find, notebook

sys.path.insert(0, str(Path(__file__).parent.parent))
import service

ASSETS = Path(__file__).parents[2] / "tests" / "assets"
TEMPLATE = "{} is located on the continent of"


def pairs(known: list[dict[str, Any]], tokenizer: Any, n: int, seed: int) -> list[dict[str, str]]:
    """Countries of different continents whose prompts have the commonest number of tokens."""
    countries = {fact["subject"]: fact["object"] for fact in known if fact["relation"] == "continent"}
    by_length: dict[int, list[str]] = {}
    for name in countries:
        by_length.setdefault(len(tokenizer(TEMPLATE.format(name)).input_ids), []).append(name)
    names = max(by_length.values(), key=len)
    both = [(one, other) for one in names for other in names if countries[one] != countries[other]]
    chosen = random.Random(seed).sample(both, min(n, len(both)))
    return [
        {
            "base": TEMPLATE.format(one),
            "source": TEMPLATE.format(other),
            "answer": countries[one],
            "source_answer": countries[other],
        }
        for one, other in chosen
    ]


def one_model(name: str, seed: int, folder: Path, picture: Path | None) -> dict[str, Any]:
    from nnsight.modeling.transformers import TransformersModel

    source = ASSETS / f"facts-{name}-mini"
    known = json.loads((source / "facts.json").read_text())
    model = TransformersModel(str(source), task="text-generation", dispatch=True)
    given = pairs(known, model.tokenizer, 16, seed)
    parts = {"family": "parts", "sites": ["resid_post", "mlp_out" if name == "gpt" else "mixer_out"]}
    found: dict[str, Any] = {"pairs": len(given)}
    for search in ("exhaustive", "atp", "ig"):
        report = notebook.Notebook(folder, seed=seed, bar=False)
        began = time.process_time()
        params = {"pairs": given, "mediator": parts, "search": search, "check": 40, "ig_steps": 5}
        result = notebook.run(find("mediate"), model, params, report)
        rows = result.table("effects").rows
        cost = {"cpu_seconds": round(time.process_time() - began, 2), **report.cost}
        found[search] = (
            {one.name: one.value for one in result.metrics} | cost | {"top": [list(one) for one in rows[:8]]}
        )
        if search == "exhaustive":
            last = max(row[1] for row in rows), max(row[2] for row in rows)
            (whole,) = [row[4] for row in rows if row[0] == "resid_post" and (row[1], row[2]) == last]
            found["last"] = whole / result.metric("total_effect").value
            if picture:
                result.plot().savefig(picture, dpi=80)
    report = notebook.Notebook(folder, seed=seed, bar=False)
    params = {"pairs": pairs(known, model.tokenizer, 96, seed), "search": "das", "steps": 100}
    params |= {"mediator": {"family": "subspace", "layer": 4, "k": 4}, "lr": 0.02}
    result = notebook.run(find("mediate"), model, params, report)
    found["das"] = {f"{one.name} {one.split}".strip(): one.value for one in result.metrics}
    return found


def claims(found: dict[str, Any]) -> dict[str, bool]:
    das = found["das"]
    atp, ig = (found[search]["ranking_quality"] for search in ("atp", "ig"))
    return {
        "attribution patching ranks with at least .8": atp >= 0.8,
        "integrated gradients with no less than .05 below": ig >= atp - 0.05,
        "the last token at the last block has all of it": abs(found["last"] - 1) <= 0.02,
        "DAS reaches .8 of the whole state": das["iia test"] >= 0.8 * das["iia test, the whole state"],
        "random weights at most .1 above chance": das["iia test, random weights"] <= das["chance test"] + 0.1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--models", nargs="+", default=["gpt", "mamba"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    seeds: dict[str, Any] = {}
    for number, seed in enumerate(chosen.seeds):
        for name in chosen.models:
            picture = chosen.picture if not number and name == chosen.models[0] else None
            with tempfile.TemporaryDirectory() as folder:
                found = one_model(name, seed, Path(folder), picture)
            seeds[f"{name} {seed}"] = {"claims": claims(found), **found}
            print(name, seed, "rankings", found["atp"]["ranking_quality"], found["ig"]["ranking_quality"], found["das"])
            for search in ("exhaustive", "atp", "ig"):
                print("  ", search, {key: found[search][key] for key in ("cpu_seconds", "forwards", "backwards")})
            for claim, holds in seeds[f"{name} {seed}"]["claims"].items():
                print(f"  {'holds' if holds else 'FAILS'}  {claim}", flush=True)
            if chosen.json:
                record = {"seeds": seeds, "circumstances": service.circumstances()}
                chosen.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
