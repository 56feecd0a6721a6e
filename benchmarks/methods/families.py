"""One table, transformer beside Mamba: where a fact is kept, whether an edit takes, what is affine, what is heard.

    python benchmarks/methods/families.py [--json FILE] [--table FILE]

Two pairs of models: those of tests/assets that know the same 596 facts (6 blocks of 128; facts and corruption drawn by
seed 21), and those of `planted_names.py`, trained for each of the seeds 1, 2, 3 (6 blocks of 64, 4 of 48; 40 s of one
core each where they are not in the cache), of which the surname alone tells. What `tracing.py`, `rome.py` and `lre.py`
have stored is read, the rest is run: about 4 minutes of one core. Blocks and sites are chosen on some facts and
measured on others. The claims were written before the run; jobs and instruments, on which edits had been tried before,
are left out. `--table FILE` only prints the table of a stored run.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import planted_names
import rome
import torch
import tracing
from claims import Claim, judged, written
from family_table import table
from nnsight import TransformersModel

from interlace.methods import find, notebook
from interlace.methods.base import Result
from interlace.methods.shared import intervals

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import facts_of

_ROOT = Path(__file__).parents[2]
_STORED = _ROOT / "benchmarks" / "results" / "2026-11-26"
_RELATIONS = ("born_in", "language", "sport", "country_language")
_SITES = {
    "gpt": (("mlp_out", 0), ("mlp_out", 1), ("mlp_out", 2)),
    "mamba": (("mixer_out", 0), ("mixer_out", 1), ("mixer_in.x", 0), ("mixer_in.x", 1), ("mixer_in.gate", 0)),
}
_WINDOW = {"facts": 3, "planted-gpt": 3, "planted-mamba": 2}  # half of the blocks
_SEED, _PLANTED_SEEDS, _PLANTED_EDITS = 21, (1, 2, 3), 8
#: By measure: value, 95 % interval or None, n, where (a block, a site).
Figures = dict[str, Any]
CLAIMS = (
    Claim("facts: the subject's last token carries .2 at most", lambda of: of["trace.subject"] <= 0.2, "facts"),
    Claim("the last token of the last block carries all: 1 within .02", lambda of: abs(of["trace.end"] - 1) <= 0.02),
    Claim(
        "planted: the surname carries .3 or more in its best block", lambda of: of["trace.subject"] >= 0.3, "planted"
    ),
    Claim("ROME at the best site: ES .95", lambda of: of["rome.ES"] >= 0.95),
    Claim("PS .6", lambda of: of["rome.PS"] >= 0.6),
    Claim("NS .75", lambda of: of["rome.NS"] >= 0.75),
    Claim("S .8", lambda of: of["rome.S"] >= 0.8),
    Claim("unrelated facts kept .9", lambda of: of["rome.unrelated"] >= 0.9),
    Claim("unedited: ES .05 at most", lambda of: of["rome.before.ES"] <= 0.05),
    Claim("a random key: unrelated lower by .3", lambda of: of["rome.unrelated"] - of["random.unrelated"] >= 0.3),
    Claim("cutting the subject costs half of the answer or more", lambda of: of["cut.subject"] <= -0.5),
)


def drawn(tokenizer: Any) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """(to choose on, to measure on): prompts for tracing and cutting, requests for edits; no fact in both."""
    dice = random.Random(_SEED)
    choose: dict[str, list[Any]] = {"prompts": [], "requests": []}
    measure: dict[str, list[Any]] = {"prompts": [], "requests": []}
    for relation in _RELATIONS:
        facts = [fact for fact in facts_of.every() if fact["relation"] == relation]
        order = dice.sample(range(len(facts)), len(facts))
        prompts = [one for at in order for one in _prompt(facts[at], facts, tokenizer, dice)]
        choose["prompts"] += prompts[:3]
        measure["prompts"] += prompts[3:15]
        edits = [request for at in order for request in facts_of.requests(relation, 1, at) if request["neighbours"]]
        choose["requests"] += edits[:1]
        measure["requests"] += edits[1:7]
    return choose, measure


def _prompt(fact: Mapping[str, Any], facts: Sequence[Any], tokenizer: Any, dice: random.Random) -> list[dict[str, str]]:
    """Its first wording that does not begin with the subject, and another subject of as many tokens; or nothing."""
    length = len(tokenizer(f" {fact['subject']}")["input_ids"])
    others = [
        one["subject"]
        for one in facts
        if one["object"] != fact["object"] and len(tokenizer(f" {one['subject']}")["input_ids"]) == length
    ]
    wordings = [text for text in fact["train"] if f" {fact['subject']}" in text]
    if not others or not wordings:
        return []
    other = dice.choice(others)
    return [{"text": wordings[0], "subject": fact["subject"], "answer": fact["object"], "alternative": other}]


class Runner:
    """Methods on one model."""

    def __init__(self, model: Any, folder: Path, seed: int) -> None:
        self._model = model
        self.tokenizer = model.tokenizer
        self.report = notebook.Notebook(folder, seed=seed, bar=False)

    def __call__(self, method: str, params: Mapping[str, Any]) -> Any:
        return notebook.run(find(method), self._model, dict(params), self.report)


def cells(run: Runner, prompts: Sequence[Any], **how: Any) -> dict[str, list[list[float]]]:
    """By class of token: of each prompt the effect of restoring the stream there, by block (means within a class)."""
    result = run("trace.causal", {"prompts": list(prompts), "corruption": "alt_subject", "batch": 128, **how})
    opened = run.report.open(result.artifacts[0], "data")
    found: dict[str, list[list[float]]] = {}
    for at, classes in enumerate(opened.config["classes"]):
        grid = opened.tensors[f"{at}.resid_post"]
        for name in dict.fromkeys(classes):
            mine = torch.tensor([token for token, one in enumerate(classes) if one == name])
            found.setdefault(name, []).append(grid[mine].mean(0).tolist())
    return found


def told(values: Sequence[float], where: str = "") -> Figures:
    value, interval = intervals.mean(list(values))
    return {"value": value, "ci95": interval, "n": len(values), "where": where}


def traced(choosing: Mapping[str, list[list[float]]], measured: Mapping[str, list[list[float]]]) -> Figures:
    """The subject's last token in the block that is its best on other prompts, and the prompt's last token there."""
    best = max(range(len(choosing["last"][0])), key=lambda at: sum(row[at] for row in choosing["subject_last"]))
    means = [told([row[at] for row in measured["last"]])["value"] for at in range(len(measured["last"][0]))]
    return {
        "trace.subject": told([row[best] for row in measured["subject_last"]], f"block {best}"),
        "trace.last": told([row[best] for row in measured["last"]], f"block {best}"),
        "trace.end": told([row[-1] for row in measured["last"]], f"block {len(means) - 1}"),
        "trace.carries": {
            "value": next(at for at, mean in enumerate(means) if mean >= 0.8),
            "n": len(measured["last"]),
        },
    }


def cut(run: Runner, choose: Sequence[Any], measure: Sequence[Any], window: int) -> Figures:
    """What cutting the subject, and all other words, costs, each in the window that costs most on other prompts."""
    blocks = ["subject", "not_subject"]
    tables = []
    for some in (choose, measure):
        prompts = [{name: one[name] for name in ("text", "subject", "answer")} for one in some]
        result = run("flow.knockout", {"prompts": prompts, "block": blocks, "window": window})
        tables.append(result.table("flow").rows)
    found = {}
    for block in blocks:
        worst = min((row for row in tables[0] if row[0] == block), key=lambda row: row[2])[1]
        _, layer, change, low, high, n = next(row for row in tables[1] if (row[0], row[1]) == (block, worst))
        found[f"cut.{block}"] = {"value": change, "ci95": [low, high], "n": n, "where": f"block {layer}"}
    return found


def scores(result: Result, prefix: str, split: str = "after", where: str = "") -> Figures:
    mine = [one for one in result.metrics if one.split == split and not one.name.endswith(("_acc", "_diff"))]
    return {f"{prefix}{one.name}": {"value": one.value, "ci95": one.ci95, "n": one.n, "where": where} for one in mine}


def edited(run: Runner, kind: str, choose: Sequence[Any], measure: Sequence[Any]) -> Figures:
    touched = {one["subject"] for one in [*choose, *measure]}
    others = [
        one for one in facts_of.every() if one["relation"] in ("job", "capital") and one["subject"] not in touched
    ]
    base = {
        "steps": 40,
        "sampled": [[2, 4]],
        "most_tokens": 4000,
        "unrelated": [{"prompt": one["train"][0], "answer": one["object"]} for one in others[::5][:15]],
    }
    texts = facts_of.corpus()[::3]

    def edit(requests: Sequence[Any], site: str, layer: int, **more: Any) -> Result:
        how = {"site": site, "layer": layer, "clamp": 20 if layer else 10, "texts": texts, **base, **more}
        result: Result = run("edit.rome", {**how, "requests": list(requests)})
        return result

    best = max(_SITES[kind], key=lambda place: edit(choose, *place).metric("S", "after").value)
    where = f"{best[0]}, block {best[1]}"
    result = edit(measure, *best)
    chance = edit(measure[::3], *best, key="random", texts=None)
    found = scores(result, "rome.", "after", where) | scores(result, "rome.before.", "before")
    return found | scores(chance, "random.", "after", where)


def lre(case: Callable[[str], bool]) -> Figures:
    """Of relations that `lre.py` stored: by relation and measure the mean of the seeds, the lowest and the highest."""
    seeds = json.loads((_STORED / "lre.json").read_text())["seeds"]
    found = {}
    for name in filter(case, seeds["11"]):
        for measure in ("faithfulness_crossed", "bias_only"):
            values = [seed[name][measure] for seed in seeds.values()]
            found[f"lre.{name.split()[-1]}.{measure}"] = over(values, seeds["11"][name]["n"])
    return found


def over(values: Sequence[float], n: int, where: str = "") -> Figures:
    """Of seeds: their mean, the lowest and the highest."""
    return {
        "value": sum(values) / len(values),
        "range": [min(values), max(values)],
        "n": n,
        "seeds": len(values),
        "where": where,
    }


def facts(kind: str, folder: Path) -> Figures:
    path = _ROOT / "tests" / "assets" / f"facts-{kind}-mini"
    run = Runner(TransformersModel(str(path), task="text-generation", dispatch=True), folder, _SEED)
    choose, measure = drawn(run.tokenizer)
    found = traced(cells(run, choose["prompts"]), cells(run, measure["prompts"]))
    found |= cut(run, choose["prompts"], measure["prompts"], _WINDOW["facts"])
    found |= edited(run, kind, choose["requests"], measure["requests"])
    return found | lre(lambda name: name.startswith(f"facts {kind} "))


def planted(kind: str, folder: Path) -> Figures:
    """Seed 1 of tracing and edits as `tracing.py` and `rome.py` stored it, the others by their functions."""
    stored = [json.loads((_STORED / f"{one}-planted.json").read_text())["figures"] for one in ("tracing", "rome")]
    traces, edits, cuts = [], [], []
    for seed in _PLANTED_SEEDS:
        name = f"planted-{kind}-{seed}"
        traces.append(stored[0].get(name) or tracing.planted(kind, seed, 12, folder))
        edits.append(stored[1].get(name) or rome.planted(kind, seed, _PLANTED_EDITS, folder))
        made = planted_names.trained(kind, seed)
        prompts = planted_names.traced(made, 24)
        cuts.append(cut(Runner(made.model, folder, seed), prompts[::2], prompts[1::2], _WINDOW[f"planted-{kind}"]))
    depth = sum(name.startswith("last.layer") for name in traces[0])
    best = max(range(depth), key=lambda at: traces[0][f"subject_last.layer{at}"])
    n = int(traces[0]["n"])
    found = {
        f"trace.{measure}": over([one[f"{token}.layer{at}"] for one in traces], n, f"block {at}")
        for measure, token, at in (
            ("subject", "subject_last", best),
            ("last", "last", best),
            ("end", "last", depth - 1),
        )
    }
    carries = [next(at for at in range(depth) if one[f"last.layer{at}"] >= 0.8) for one in traces]
    found["trace.carries"] = over(carries, n) | {"value": sorted(carries)[1]}
    where = f"block {', '.join(str(int(one)) for one in sorted({one['best'] for one in edits}))}"
    for ours, theirs in (("rome.", "best."), ("rome.before.", "before."), ("random.", "random.")):
        for name in ("ES", "PS", "NS", "S", "unrelated", "other_relations"):
            found[ours + name] = over([one[theirs + name] for one in edits], _PLANTED_EDITS, where)
    for name in cuts[0]:
        found[name] = over([one[name]["value"] for one in cuts], cuts[0][name]["n"])
    families = {"gpt": "gpt2", "mamba": "mamba"}
    return found | lre(lambda name: name == f"planted {families[kind]} structured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    chosen = parser.parse_args()
    if chosen.table:
        print(table(json.loads(chosen.table.read_text())["figures"]))
        return
    torch.set_num_threads(1)
    every: dict[str, Figures] = {}
    seconds = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for what, made in (("facts", facts), ("planted", planted)):
            for kind in ("gpt", "mamba"):
                begun = time.process_time()
                every[f"{what}-{kind}"] = made(kind, Path(name))
                seconds[f"{what}-{kind}"] = round(time.process_time() - begun, 1)
                print(f"{what}-{kind}", seconds[f"{what}-{kind}"], "CPU-seconds", flush=True)
    values = {model: {name: one["value"] for name, one in of.items()} for model, of in every.items()}
    written(chosen.json, every, judged(CLAIMS, values), cpu_seconds=seconds)
    print(table(every))


if __name__ == "__main__":
    main()
