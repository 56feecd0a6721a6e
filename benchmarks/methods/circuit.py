"""Do circuits of features say what they are said to? An experiment that can fail, reported as it is.

    python benchmarks/methods/circuit.py [--parts gpt mamba same smollm2] [--seeds 31 32 33] [--json FILE]

**gpt**, **mamba**: the small models that know facts (tests/assets). Dictionaries at the embeddings and after two
blocks, trained by `sae.train` on the sentences that the models know, anew for each seed; the task is a country's
continent, Europe or Asia, with another country's prompt as the patch. Countries of the circuit and of its evaluation
are different ones.
**same**: added, with its claims, after the first run had failed C3: the same on gpt, but countries are those of the
circuit and only what they are patched with is new; nodes by IG, and by AtP.
**smollm2**: time and memory of each method on SmolLM2-135M with random dictionaries at three places.

C1 to C3 of our notes on 2403.19647, section 6.6: gradient identities, estimates against exact patching, faithfulness.
The thresholds below were written before the run that the results are of; a pilot on seed 100 told what it costs.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import known_facts
import torch
from claims import Claim, judged, smollm2, written
from nnsight import TransformersModel
from torch import Tensor

from interlace.methods import find, notebook
from interlace.methods.shared.capture import altered, last_logits
from interlace.methods.shared.circuits.attribution import Attributor, Batch, Endpoints, batches, patched_whole
from interlace.methods.shared.circuits.examples import Example
from interlace.methods.shared.circuits.metrics import ProbeMetric, measure
from interlace.methods.shared.circuits.splice import Splice
from interlace.methods.shared.features.dictionary import Dictionary
from interlace.methods.shared.sites import evaluating

_ASSETS = Path(__file__).parents[2] / "tests" / "assets"
NODES, EDGES, EVALUATE = find("circuit.nodes"), find("circuit.edges"), find("circuit.evaluate")
_TRAIN = find("sae.train")
_SIZES = [0, 10, 20, 40, 80, 160, 320, 640]
#: Of a trained dictionary, by model: where it is, and of how many features of how many are on.
_PLACES: dict[str, list[tuple[str, int]]] = {
    "gpt": [("embed", 0), ("resid_post", 1), ("resid_post", 3)],
    "mamba": [("embed", 0), ("resid_post", 0), ("resid_post", 2)],
}

#: Written before the run. Each is held for every seed of each model.
CLAIMS = (
    Claim("C1: a splice moves logits by at most 1e-5 of the largest", lambda f: f["splice"] <= 1e-5),
    Claim("C1: feature gradients are dm/dx . v_i to 1e-5 of the largest", lambda f: f["projection"] <= 1e-5),
    Claim("C1: gradients upstream are those without a splice to 1e-5", lambda f: f["pass_through"] <= 1e-5),
    Claim("C1: on a linear head integrated gradients are exact to 1e-4", lambda f: f["linear"] <= 1e-4),
    Claim("C1: effects at each place sum to patching it, within 5 % at N=10", lambda f: f["sum_10"] <= 0.05),
    Claim("C1: the same within 1 % at N=100", lambda f: f["sum_100"] <= 0.01),
    Claim("C2: slope of IG on exact effects in .8 to 1.2, at the embeddings", lambda f: 0.8 <= f["ig_slope_0"] <= 1.2),
    Claim("C2: the same after the earlier block", lambda f: 0.8 <= f["ig_slope_1"] <= 1.2),
    Claim("C2: the same after the later block", lambda f: 0.8 <= f["ig_slope_2"] <= 1.2),
    Claim("C2: slope of AtP at most .5 at the embeddings", lambda f: f["atp_slope_0"] <= 0.5),
    Claim("C2: Pearson of IG at least .80 at the embeddings", lambda f: f["ig_pearson_0"] >= 0.8),
    Claim("C2: at least .95 after the earlier block", lambda f: f["ig_pearson_1"] >= 0.95),
    Claim("C2: at least .95 after the later block", lambda f: f["ig_pearson_2"] >= 0.95),
    Claim("C2: the error of IG is less at N=100 than at N=10", lambda f: f["ig_error_100"] < f["ig_error_10"]),
    Claim("C3: held-out faithfulness at least .8 with at most 15 % of the active nodes", lambda f: f["best"] >= 0.8),
    Claim("C3: as many random nodes at most .2", lambda f: f["best_random"] <= 0.2),
    Claim("C3: the model without them at most .2", lambda f: f["best_complement"] <= 0.2),
)


#: Of the part that was added. Written before its run, and after that of the others.
SAME = (
    Claim(
        "C3, same countries: faithfulness at least .8 with at most 15 % of the active nodes", lambda f: f["best"] >= 0.8
    ),
    Claim("C3, same countries, nodes by AtP: the same", lambda f: f["atp_best"] >= 0.8),
    Claim("C3, same countries: as many random nodes at most .2", lambda f: f["best_random"] <= 0.2),
    Claim("C3, same countries: the model without them at most .2", lambda f: f["best_complement"] <= 0.2),
)


def facts(name: str) -> Any:
    model = TransformersModel(str(_ASSETS / f"facts-{name}-mini"), task="text-generation", dispatch=True)
    model._module.eval()
    return model


def sentences() -> list[str]:
    every = json.loads((_ASSETS / "facts-gpt-mini" / "facts.json").read_text())
    return [f"{template} {one['object']}." for one in every for template in one["train"]]


def examples(model: Any, seed: int, *, same: bool = False) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Pairs for the circuit and for its evaluation, of one number of tokens; of different countries, or with ``same``
    of the same ones with other patches."""
    every = json.loads((_ASSETS / "facts-gpt-mini" / "facts.json").read_text())
    template = "{} is located on the continent of"
    by_length: dict[int, dict[str, list[str]]] = {}
    for one in every:
        if one["relation"] == "continent" and one["object"] in ("Europe", "Asia"):
            length = len(model.tokenizer(template.format(one["subject"]))["input_ids"])
            by_length.setdefault(length, {"Europe": [], "Asia": []})[one["object"]].append(one["subject"])
    sides = max(by_length.values(), key=lambda one: min(len(own) for own in one.values()))
    dice = torch.Generator().manual_seed(seed)
    halves: list[list[dict[str, str]]] = [[], []]
    mixed = {name: [own[number] for number in torch.randperm(len(own), generator=dice)] for name, own in sides.items()}
    for half in range(2):
        for (name, own), (other, its) in itertools.permutations(mixed.items(), 2):
            mine = own[:4] if same else own[half::2]
            for one, another in itertools.product(mine, its[half::2]):
                pair = {"clean": template.format(one), "patch": template.format(another)}
                halves[half].append({**pair, "answer": name, "patch_answer": other})
    return halves[0][:16], halves[1][:16]


def trained(model: Any, name: str, seed: int, folder: Path, steps: int = 250) -> list[dict[str, str]]:
    report = notebook.Notebook(folder, seed=seed, bar=False)
    found = []
    for site, layer in _PLACES[name]:
        asked = {"site": site, "layer": layer, "arch": "topk", "sparsity": {"type": "k", "k": 16}, "d_sae": 512}
        asked |= {"steps": steps, "batch": 256, "buffer": 8192, "model_batch": 64, "lr": 2e-3, "lr_warmup": 20}
        result = notebook.run(_TRAIN, model, {**asked, "data": sentences(), "sparsity_warmup": 0}, report)
        found.append({"sae": result.sae})
    return found


def identities(model: Any, saes: list[dict[str, str]], pairs: list[dict[str, str]], report: Any) -> dict[str, float]:
    """C1, the worst over places."""
    splice = Splice.open(model, [(report.open(one["sae"]), None, None) for one in saes])
    some = [Example.model_validate(one) for one in pairs[:4]]
    m = measure("logit_diff", splice.sites, model.tokenizer, some, report, None)
    attributor = Attributor(splice, m)
    (batch,) = batches(model.tokenizer, some, 4)
    found = {"splice": 0.0, "projection": 0.0, "pass_through": 0.0, "sum_10": 0.0, "sum_100": 0.0}
    with evaluating(model), torch.no_grad():
        plain = last_logits(splice.sites.module, batch.clean)
        with torch.enable_grad(), splice.opened():
            found["splice"] = _gap(last_logits(splice.sites.module, batch.clean), plain)
        true, gradients = _true_gradients(splice, attributor, batch), attributor.gradients(batch)
        for name, one in true.items():
            found["pass_through"] = max(found["pass_through"], _gap(gradients[name].error, one))
            gap = _gap(gradients[name].features, one @ splice[name].directions.T)
            found["projection"] = max(found["projection"], gap)
        for name in splice.names:
            for steps in (10, 100):
                key = f"sum_{steps}"
                found[key] = max(found[key], _incomplete(attributor, batch, name, steps, "midpoint"))
            found[f"sum_10_clean_first_{name}"] = _incomplete(attributor, batch, name, 10, "clean_first")
            found[f"sum_10_patch_first_{name}"] = _incomplete(attributor, batch, name, 10, "patch_first")
        found["linear"] = _linear(attributor, batch, report)
    return found


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one.detach() - other).abs().max() / other.abs().max())


def _true_gradients(splice: Splice, attributor: Attributor, batch: Batch) -> dict[str, Tensor]:
    nothing: dict[str, Tensor] = {}

    def add(name: str) -> Any:
        def change(state: Tensor) -> Tensor:
            nothing[name] = torch.zeros_like(state).requires_grad_(True)
            return state + nothing[name]

        return change

    with torch.enable_grad(), altered([(one.place, add(one.name)) for one in splice.coders]):
        total = attributor.measure(batch.clean, batch.numbers).sum()
        return dict(zip(nothing, torch.autograd.grad(total, list(nothing.values())), strict=True))


def _incomplete(attributor: Attributor, batch: Batch, name: str, steps: int, way: Endpoints) -> float:
    """How far all effects of a place together are from patching it, of the latter; means over examples."""
    runs = attributor.runs(batch)
    with attributor.splice.intervened({name: patched_whole(runs.patch[name])}):
        whole = float((attributor.measure(batch.clean, batch.numbers) - runs.m_clean).mean())
    effects = attributor.ig(batch, runs, steps, way, name)
    total = float((effects.features.sum((1, 2)) + effects.error.sum(1)).mean())
    return abs(total / whole - 1)


def _linear(attributor: Attributor, batch: Batch, report: Any) -> float:
    """Of a head on the last place's states: how far IG is from patching each of 40 nodes, of the largest."""
    splice, name = attributor.splice, attributor.splice.names[-1]
    one = splice[name]
    dice = torch.Generator().manual_seed(0)
    answers, others = torch.zeros(4, dtype=torch.long), torch.full((4,), -1)
    weight, bias = torch.randn(1, one.d_in, generator=dice), torch.zeros(1)
    head = ProbeMetric(splice.sites, report, one.place, weight, bias, True, answers, others)
    linear = Attributor(splice, head)
    runs = linear.runs(batch)
    effects = linear.ig(batch, runs, 3, "clean_first", name)
    at = effects.features.abs().sum(0).flatten().topk(40).indices.tolist()
    nodes = [(index // one.d_sae, index % one.d_sae) for index in at]
    exact = linear.exact(batch, runs, name, nodes, 64)  # type: ignore[arg-type]
    return _gap(torch.stack([effects.features[:, position, feature] for position, feature in nodes]).double(), exact)


def approximations(model: Any, asked: dict[str, Any], report: Any) -> dict[str, float]:
    """C2: every active feature ablated to 0, by itself, in 4 prompts; estimates beside it, by place."""
    alone = [{key: value for key, value in one.items() if key != "patch"} for one in asked["data"]]
    few = {**asked, "data": alone[:2] + alone[-2:], "topk": 20_000, "check": 0, "batch": 64}

    def effects(**more: Any) -> dict[Any, float]:
        rows = notebook.run(NODES, model, {**few, **more}, report).table("nodes").rows
        return {row[:4]: row[4] for row in rows if row[3] >= 0}

    exact = effects(method="exact")
    places = list(dict.fromkeys(key[:2] for key in exact))
    places.sort(key=lambda one: -1 if one[1] is None else one[1])
    found = {"nodes": float(len(exact))}
    for name, estimated in (
        ("atp", effects(method="atp")),
        ("ig", effects(ig_endpoints="midpoint")),
        ("ig_clean_first", effects(ig_endpoints="clean_first")),
        ("ig_patch_first", effects(ig_endpoints="patch_first")),
        ("ig_100", effects(ig_endpoints="midpoint", ig_steps=100)),
    ):
        for number, place in enumerate(places):
            keys = [key for key in exact if key[:2] == place]
            one = torch.tensor([estimated.get(key, 0.0) for key in keys], dtype=torch.float64)
            other = torch.tensor([exact[key] for key in keys], dtype=torch.float64)
            found[f"{name}_slope_{number}"] = float(one @ other / (other @ other))
            found[f"{name}_pearson_{number}"] = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
        every = [(estimated.get(key, 0.0) - value) ** 2 for key, value in exact.items()]
        found[f"{name}_error"] = (sum(every) / len(every)) ** 0.5
    found["ig_error_10"], found["ig_error_100"] = found["ig_error"], found["ig_100_error"]
    return found


def faithfulness(
    model: Any,
    asked: dict[str, Any],
    held: list[dict[str, str]],
    report: Any,
    method: str = "ig",
    kinds: tuple[str, ...] = ("default", "remove"),
) -> tuple[dict[str, float], list[Any]]:
    """C3: circuits of growing size, on other examples; as the best, the smallest that is faithful."""
    nodes = notebook.run(NODES, model, {**asked, "topk": 5000, "method": method}, report)
    rows = []
    for errors in kinds:
        params = {"saes": asked["saes"], "data": held, "nodes": nodes.circuit, "sizes": _SIZES, "errors": errors}
        result = notebook.run(EVALUATE, model, {**params, "batch": 64}, report)
        table = result.table("faithfulness")
        rows += [{"with_errors": errors, **dict(zip(table.columns, row, strict=True))} for row in table.rows]
    small = [one for one in rows if one["with_errors"] == "default" and one["share"] <= 0.15]
    best = next((one for one in small if one["faithfulness"] >= 0.8), max(small, key=lambda one: one["faithfulness"]))
    found = {"best": best["faithfulness"], "best_nodes": best["nodes"], "best_share": best["share"]}
    found |= {"best_random": best["random"], "best_complement": best["completeness"]}
    found["m_model"], found["m_empty"] = (result.metric(name).value for name in ("m_model", "m_empty"))
    found["check_pearson"], found["check_slope"] = (nodes.metric(name).value for name in ("pearson", "slope"))
    for row in nodes.table("sites").rows:
        found[f"explained_{row[0]}_{row[1]}"] = row[4]
    return found, rows


def one_seed(name: str, seed: int, folder: Path) -> tuple[dict[str, float], list[Any]]:
    model = facts(name)
    report = notebook.Notebook(folder, seed=seed, bar=False)
    started = time.process_time()
    saes = trained(model, name, seed, folder)
    figures = {"cpu_seconds_training": time.process_time() - started}
    found, held = examples(model, seed)
    figures["pairs"], figures["held_out_pairs"] = len(found), len(held)
    asked: dict[str, Any] = {"saes": saes, "data": found}
    figures |= identities(model, saes, found, report)
    figures |= approximations(model, asked, report)
    of_circuit, rows = faithfulness(model, asked, held, report)
    figures |= of_circuit | {"cpu_seconds": time.process_time() - started}
    return figures, rows


def same_countries(seed: int, folder: Path) -> tuple[dict[str, float], list[Any]]:
    model = facts("gpt")
    report = notebook.Notebook(folder, seed=seed, bar=False)
    saes = trained(model, "gpt", seed, folder, steps=150)
    found, held = examples(model, seed, same=True)
    figures, rows = faithfulness(model, {"saes": saes, "data": found}, held, report, kinds=("default",))
    by_atp, more = faithfulness(model, {"saes": saes, "data": found}, held, report, "atp", ("default",))
    figures |= {f"atp_{name}": value for name, value in by_atp.items()}
    return figures, [{"by": "ig", **one} for one in rows] + [{"by": "atp", **one} for one in more]


def costs(folder: Path) -> dict[str, float]:
    """CPU-seconds and how much the peak of the process's memory grew over each method, two examples of 9 tokens.

    The dictionaries are random ones, top 32 of 4,608: what that costs is what trained ones cost.
    """
    model = smollm2()
    report = notebook.Notebook(folder, bar=False)
    data = [
        {"clean": f"The capital of {one} is the city of", "answer": city, "patch_answer": "London"}
        for one, city in known_facts.capitals()[:2]
    ]
    saes = []
    for number, layer in enumerate((None, 9, 19)):
        rows = torch.randn(4608, 576, generator=torch.Generator().manual_seed(number))
        rows /= rows.norm(dim=-1, keepdim=True)
        weights = {"W_dec": rows, "W_enc": rows.T, "b_dec": torch.zeros(576), "b_enc": torch.zeros(4608)}
        told = {"site": "embed" if layer is None else "resid_post", "layer": layer}
        made = Dictionary("topk", weights, 32, metadata=told)
        saes.append({"sae": report.artifact("sae", weights, made.config())})
    figures: dict[str, float] = {}
    few: dict[str, Any] = {"saes": saes, "data": data, "aggregate": "sum_pos", "check": 0, "batch": 2}
    cost(figures, "circuit.nodes, atp", NODES, model, {**few, "method": "atp"}, report)
    nodes = cost(figures, "circuit.nodes, ig, N=10", NODES, model, few, report)
    figures["rows that exact would take"] = nodes.metric("active_nodes").value
    asked = {"saes": saes, "data": data, "nodes": nodes.circuit, "batch": 2}
    cost(figures, "circuit.edges, 30 nodes", EDGES, model, {**asked, "max_nodes": 30}, report)
    cost(figures, "circuit.evaluate, 2 sizes", EVALUATE, model, {**asked, "sizes": [50, 200], "controls": 1}, report)
    return figures


def cost(figures: dict[str, float], name: str, spec: Any, model: Any, params: Any, report: Any) -> Any:
    before, started = dict(report.cost), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    held = _megabytes("VmRSS")
    result = notebook.run(spec, model, params, report)
    figures[f"{name}: CPU-seconds"] = round(time.process_time() - started, 1)
    figures[f"{name}: forwards"] = report.cost["forwards"] - before["forwards"]
    figures[f"{name}: backwards"] = report.cost["backwards"] - before["backwards"]
    figures[f"{name}: peak grew by MB"] = _megabytes("VmHWM") - held
    print(name, {key: value for key, value in figures.items() if key.startswith(name)}, flush=True)
    return result


def _megabytes(name: str) -> int:
    """Of this process, of Linux' account."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["gpt", "mamba", "same", "smollm2"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[31, 32, 33])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, dict[str, float]] = {}
    tables: dict[str, list[Any]] = {}
    more: dict[str, Any] = {}
    for part in asked.parts:
        with tempfile.TemporaryDirectory() as folder:
            if part == "smollm2":
                more["smollm2"] = costs(Path(folder))
                continue
            for seed in asked.seeds:
                key = f"{part}-{seed}"
                of_seed = same_countries if part == "same" else partial(one_seed, part)
                figures[key], tables[key] = of_seed(seed, Path(folder) / str(seed))
                print(key, {name: round(value, 4) for name, value in figures[key].items()}, flush=True)
    first = {name: one for name, one in figures.items() if not name.startswith("same")}
    added = {name: one for name, one in figures.items() if name.startswith("same")}
    verdicts = (judged(CLAIMS, first) if first else []) + (judged(SAME, added) if added else [])
    written(asked.json, figures, verdicts, faithfulness=tables, **more)


if __name__ == "__main__":
    sys.exit(main())
