"""`mediate`: what gradients miss, what they save, and what searches find where nothing is, on models of tests/assets.

    python benchmarks/methods/mediate.py [--seeds 11 12 13] [--json FILE] [--pictures FOLDER]

Pairs are countries of two continents, one number of tokens (the seed chooses them). Thresholds, written before the run:
attribution patching ranks mediators with a Spearman of at least .8 against exact patching on both models, integrated
gradients with no less than .05 below it; the last token at the last block carries the whole effect (1 +- .02); DAS with
k = 4 at the last token of block 4 reaches .8 of the whole state's interchange accuracy on held-out pairs, and in a
model of random weights at most .1 above chance. (The run has shown that the Mamba's whole state at that place has an
accuracy of 0: there the claim on DAS holds and says nothing.)

Where there are many mediators, every neuron of every block at the last token, attribution patching without a check
takes at most a fiftieth of exact patching's CPU-seconds and ranks all of them with a Spearman of at least .8. A mask
(DBM) over attention and MLP outputs (of a Mamba its mixers') of each token has on held-out pairs .8 of the interchange
accuracy of all of them together, with at most half of them; as many random ones have at most half of the mask's.
Selectivity against the same countries' languages is told; nobody knows what it should be.
"""

import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import experiment
import torch
from claims import Claim

from interlace.methods import find, notebook
from interlace.methods.mediate.gradients import spearman
from interlace.methods.shared.sites import Sites

ASSETS = Path(__file__).parents[2] / "tests" / "assets"
TEMPLATE = "{} is located on the continent of"
LANGUAGE = "Schools in {} teach in"  # of as many tokens
CLAIMS = (
    Claim("attribution patching ranks with at least .8", lambda of: of["atp"]["ranking_quality"] >= 0.8),
    Claim(
        "integrated gradients with no less than .05 below",
        lambda of: of["ig"]["ranking_quality"] >= of["atp"]["ranking_quality"] - 0.05,
    ),
    Claim("the last token at the last block has all of it", lambda of: abs(of["last"] - 1) <= 0.02),
    Claim("DAS reaches .8 of the whole state", lambda of: _das(of)["test"] >= 0.8 * _das(of)["test, the whole state"]),
    Claim(
        "DAS in random weights is at most .1 above chance",
        lambda of: _das(of)["test, random weights"] <= of["das"]["chance test"] + 0.1,
    ),
    Claim(
        "many mediators: attribution patching takes a fiftieth",
        lambda of: of["many"]["exhaustive_seconds"] >= 50 * of["many"]["atp_seconds"],
    ),
    Claim("... and ranks all of them with at least .8", lambda of: of["many"]["spearman"] >= 0.8),
    Claim("DBM reaches .8 of every unit", lambda of: of["dbm"]["iia test"] >= 0.8 * of["dbm"]["iia test, every unit"]),
    Claim("... with at most half of them", lambda of: of["dbm"]["units"] <= 0.5),
    Claim(
        "... and as many random ones have at most half of that",
        lambda of: of["dbm"]["iia test, random units"] <= 0.5 * of["dbm"]["iia test"],
    ),
)


def _das(of: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix("iia "): value for name, value in of["das"].items() if name.startswith("iia ")}


def pairs(
    known: list[dict[str, Any]],
    tokenizer: Any,
    n: int,
    seed: int,
    relation: str = "continent",
    template: str = TEMPLATE,
) -> list[dict[str, str]]:
    """Countries of different continents (or languages) whose prompts have the commonest number of tokens."""
    countries = {fact["subject"]: fact["object"] for fact in known if fact["relation"] == relation}
    by_length: dict[int, list[str]] = {}
    for name in countries:
        by_length.setdefault(len(tokenizer(template.format(name)).input_ids), []).append(name)
    names = max(by_length.values(), key=len)
    both = [(one, other) for one in names for other in names if countries[one] != countries[other]]
    chosen = random.Random(seed).sample(both, min(n, len(both)))
    return [
        {
            "base": template.format(one),
            "source": template.format(other),
            "answer": countries[one],
            "source_answer": countries[other],
        }
        for one, other in chosen
    ]


def one_model(name: str, seed: int, folder: Path, pictures: Path | None) -> dict[str, Any]:
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
            if pictures:
                result.plot().savefig(pictures / "mediate.png", dpi=80)
    report = notebook.Notebook(folder, seed=seed, bar=False)
    params = {"pairs": pairs(known, model.tokenizer, 96, seed), "search": "das", "steps": 100}
    params |= {"mediator": {"family": "subspace", "layer": 4, "k": 4}, "lr": 0.02}
    result = notebook.run(find("mediate"), model, params, report)
    found["das"] = {f"{one.name} {one.split}".strip(): one.value for one in result.metrics}
    return found | {"many": many(model, given[:4], report), "dbm": masked(model, known, seed, report)}


def many(model: Any, given: list[dict[str, str]], report: notebook.Notebook) -> dict[str, Any]:
    """Every neuron at the last token: CPU-seconds of both ways, and how the cheap one ranks."""
    site = "mixer_act" if "mixer_act" in Sites.of(model).names else "mlp_act"
    mediator = {"family": "neurons", "site": site}
    found: dict[str, Any] = {"pairs": len(given)}
    effects = {}
    for search in ("exhaustive", "atp"):
        began, forwards = time.process_time(), report.cost["forwards"]
        params = {"pairs": given, "mediator": mediator, "search": search, "check": 2, "batch": 64}
        result = notebook.run(find("mediate"), model, params, report)
        found[f"{search}_seconds"] = round(time.process_time() - began, 3)
        found[f"{search}_forwards"] = report.cost["forwards"] - forwards
        effects[search] = {row[:4]: float(row[4] or 0) for row in result.table("effects").rows}
    keys = list(effects["exhaustive"])
    found["mediators"] = len(keys)
    found["spearman"] = spearman(*(torch.tensor([effects[search][key] for key in keys]) for search in effects))
    found["ratio"] = round(found["exhaustive_seconds"] / found["atp_seconds"], 1)
    return found


def masked(model: Any, known: list[dict[str, Any]], seed: int, report: notebook.Notebook) -> dict[str, Any]:
    """A mask over what each token's components add; and what it does to the countries' languages."""
    given = pairs(known, model.tokenizer, 96, seed)
    sites = ["mixer_out"] if "mixer_out" in Sites.of(model).names else ["attn_out", "mlp_out"]
    length = len(model.tokenizer(given[0]["base"]).input_ids)
    others = pairs(known, model.tokenizer, 200, seed, "country_language", LANGUAGE)
    suite = [one for one in others if len(model.tokenizer(one["base"]).input_ids) == length][:32]
    params = {
        "pairs": given,
        "search": "dbm",
        "steps": 120,
        "lr": 0.05,
        "mediator": {"family": "parts", "sites": sites},
    }
    params |= {"off_target": [{"name": "language", "pairs": suite}] if len(suite) > 1 else []}
    result = notebook.run(find("mediate"), model, params, report)
    found: dict[str, Any] = {f"{one.name} {one.split}".strip(): one.value for one in result.metrics}
    return found | {"of": result.metric("units").n, "suite": len(suite), "warnings": list(result.warnings)}


def _told(found: Mapping[str, Any]) -> str:
    costs = {search: found[search]["cpu_seconds"] for search in ("exhaustive", "atp", "ig")}
    return json.dumps({"das": found["das"], "many": found["many"], "dbm": found["dbm"], "cpu_seconds": costs})


if __name__ == "__main__":
    experiment.small_models(__doc__, CLAIMS, one_model, _told)
