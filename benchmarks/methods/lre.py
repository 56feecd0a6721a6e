"""`relation.lre`: which relations are affine in the subject's state, in a transformer, in a Mamba and in SmolLM2.

    python benchmarks/methods/lre.py [--parts planted facts smollm2] [--seeds 11 12 13] [--json FILE] [--picture FILE]

`planted` trains a small model for each seed on two relations of made-up people: one whose object the last name alone
tells, one that is a lookup. `facts` takes the trained models of tests/assets, with other training subjects for each
seed. The thresholds below were written before any seed but 0 of `facts`. A first run, of seed 1, was without the
embeddings as a layer: the planted GPT-2 reads the last name in its first block, and its faithfulness was .18.
`smollm2` takes other training capitals for each seed and some minutes of a core. Its thresholds were written after
a run of seed 11 with 18 held out, and before seeds 31, 32, 33, of which the results are.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from interlace.methods import find, notebook
from interlace.methods.base import Result

sys.path.insert(0, str(Path(__file__).parent.parent))
import service

ASSETS = Path(__file__).parents[2] / "tests" / "assets"
#: Part and case -> what must hold on every seed, of the figures of `row`.
CLAIMS = {
    "planted gpt2 structured": (
        "faithfulness at least .8 and .4 above the bias alone",
        lambda one: one["faithfulness_crossed"] >= max(0.8, one["bias_only"] + 0.4),
    ),
    "planted mamba structured": (
        "faithfulness at least .8 and .4 above the bias alone",
        lambda one: one["faithfulness_crossed"] >= max(0.8, one["bias_only"] + 0.4),
    ),
    "facts gpt continent": (
        "faithfulness at least .1 above the bias alone",
        lambda one: one["faithfulness_crossed"] >= one["bias_only"] + 0.1,
    ),
    "facts mamba continent": (
        "faithfulness at least .1 above the bias alone",
        lambda one: one["faithfulness_crossed"] >= one["bias_only"] + 0.1,
    ),
    "facts gpt job": ("a lookup: at most .2 above the bias", lambda one: one["faithfulness"] <= one["bias_only"] + 0.2),
    "facts mamba job": (
        "a lookup: at most .2 above the bias",
        lambda one: one["faithfulness"] <= one["bias_only"] + 0.2,
    ),
    "smollm2 capital": (
        "at least 20 held out; faithfulness at least .5, and .4 above the bias alone and the state itself",
        lambda one: (
            one["n"] >= 20 and one["faithfulness_crossed"] >= max(0.5, one["bias_only"] + 0.4, one["identity"] + 0.4)
        ),
    ),
    "smollm2 capital edits": (
        "edits at least .5, random ones of their length at most .1",
        lambda one: one["causality"] >= 0.5 and one["causality_random"] <= 0.1,
    ),
    "smollm2 capital late": (
        "read by then: faithfulness at layers 24 and 27 at most .1, at every beta",
        lambda one: all(point[2] <= 0.1 for point in one["curves"]["faithfulness"] if point[0] >= 24),
    ),
}
TEMPLATES = {
    "continent": "{} is located on the continent of",
    "country_language": "The official language of {} is",
    "job": "{} works as a",
    "born_in": "{} was born in the city of",
}
CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Japan Tokyo, China Beijing, "
    "Russia Moscow, Egypt Cairo, Greece Athens, Austria Vienna, Poland Warsaw, Sweden Stockholm, "
    "Norway Oslo, Finland Helsinki, Denmark Copenhagen, Portugal Lisbon, Ireland Dublin, Hungary Budapest, "
    "Cuba Havana, Iran Tehran, Iraq Baghdad, Kenya Nairobi, Peru Lima, Chile Santiago, "
    "Thailand Bangkok, Bulgaria Sofia, Romania Bucharest, Serbia Belgrade, Croatia Zagreb, Turkey Ankara, "
    "Syria Damascus, Lebanon Beirut, Jordan Amman, Afghanistan Kabul, Pakistan Islamabad, Indonesia Jakarta, "
    "Philippines Manila, Vietnam Hanoi, Nepal Kathmandu, Venezuela Caracas, Ghana Accra, Senegal Dakar, "
    "Uganda Kampala, Zimbabwe Harare, Canada Ottawa, Jamaica Kingston, Belgium Brussels, Libya Tripoli"
)


def row(result: Result) -> dict[str, Any]:
    """The figures that the claims are about, and the curves."""
    figures: dict[str, Any] = {one.name: round(one.value, 4) for one in result.metrics}
    n = result.metric("faithfulness").n
    best = {name: getattr(result, name) for name in ("layer", "beta")}
    curves = {name: [list(one) for one in result.table(name).rows] for name in ("faithfulness", "causality")}
    return {**figures, **best, "n": n, "curves": curves}


def measured(model: Any, params: dict[str, Any], seed: int, picture: Path | None = None) -> dict[str, Any]:
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        report = notebook.Notebook(folder, seed=seed, bar=False)
        result = notebook.run(find("relation.lre"), model, params, report)
    if picture:
        result.plot().savefig(picture, dpi=90)
    return {**row(result), "cpu_seconds": round(time.process_time() - began, 1), **report.cost}


def planted(family: str, seed: int) -> tuple[Any, dict[str, list[dict[str, str]]]]:
    """A model of two layers' worth of facts: "FIRST LAST group OBJECT" by the last name, "FIRST LAST place OBJECT" by
    chance."""
    from nnsight.modeling.transformers import TransformersModel
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

    dice = random.Random(seed)
    first, last = [f"f{one}" for one in range(8)], [f"l{one}" for one in range(16)]
    groups, places = [f"g{one}" for one in range(6)], [f"p{one}" for one in range(6)]
    group_of = {name: groups[number % 6] for number, name in enumerate(dice.sample(last, 16))}
    told = {"structured": [], "lookup": []}
    for subject in (f"{one} {other}" for one in first for other in last):
        told["structured"].append({"subject": subject, "object": group_of[subject.split()[1]]})
        told["lookup"].append({"subject": subject, "object": dice.choice(places)})
    words = ["<end>", *first, *last, *groups, *places, "group", "place"]
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<end>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<end>", eos_token="<end>")
    lines = [f"{one['subject']} group {one['object']}" for one in told["structured"]]
    lines += [f"{one['subject']} place {one['object']}" for one in told["lookup"]]
    ids = torch.tensor(tokenizer(lines).input_ids)
    torch.manual_seed(seed)
    shape = {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        module: Any = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=64, n_head=4, n_positions=8, **shape, **off))
    else:
        module = MambaForCausalLM(MambaConfig(hidden_size=48, num_hidden_layers=4, state_size=4, **shape))
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for step in range(400):
        batch = ids[torch.randint(len(ids), (64,))]
        loss = torch.nn.functional.cross_entropy(module(input_ids=batch).logits[:, 2], batch[:, 3])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for one in optimiser.param_groups:
            one["lr"] = 3e-3 * (1 - step / 400)
    return TransformersModel(module.eval(), tokenizer=tokenizer), told


def part_planted(seed: int) -> dict[str, Any]:
    found = {}
    for family in ("gpt2", "mamba"):
        model, told = planted(family, seed)
        for kind, word in (("structured", "group"), ("lookup", "place")):
            params = {"template": f"{{}} {word}", "samples": told[kind], "icl": False, "ranks": [8, 16], "batch": 128}
            params["layers"] = [-1, 0, 1, 2, 3]
            found[f"planted {family} {kind}"] = measured(model, {**params, "betas": [1, 1.5, 2.25]}, seed)
    return found


def part_facts(seed: int) -> dict[str, Any]:
    from nnsight.modeling.transformers import TransformersModel

    found = {}
    for name in ("gpt", "mamba"):
        folder = ASSETS / f"facts-{name}-mini"
        known = json.loads((folder / "facts.json").read_text())
        model = TransformersModel(str(folder), task="text-generation", dispatch=True)
        for relation, template in TEMPLATES.items():
            samples = [
                {"subject": one["subject"], "object": one["object"]} for one in known if one["relation"] == relation
            ]
            params = {"template": template, "samples": samples, "icl": False, "ranks": [10, 20, 50], "batch": 128}
            found[f"facts {name} {relation}"] = measured(model, {**params, "betas": [1, 2.25, 5]}, seed)
    return found


def part_smollm2(seed: int, picture: Path | None) -> dict[str, Any]:
    from nnsight.modeling.transformers import TransformersModel

    folder = next((Path.home() / ".cache/interlace/models").glob("smollm2-135m-instruct-*"))
    model = TransformersModel(str(folder), task="text-generation", dispatch=True, dtype=torch.float32)
    samples = [dict(zip(("subject", "object"), pair.split(), strict=True)) for pair in CAPITALS.split(", ")]
    params = {
        "template": "The capital of {} is the city of",
        "samples": samples,
        "n_train": 4,
        "layers": [0, 3, 9, 15, 21, 24, 27],
        "betas": [1, 2.25, 4],
        "ranks": [100],
        "pairs": 24,
        "batch": 96,
    }
    return {"smollm2 capital": measured(model, params, seed, picture)}


def judged(seeds: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    told = []
    for case, (says, holds) in CLAIMS.items():
        part = case.removesuffix(" edits").removesuffix(" late")
        tried = {seed: found[part] for seed, found in seeds.items() if part in found}
        if tried:
            told.append({"case": case, "claim": says, "holds_on": [seed for seed in tried if holds(tried[seed])]})
            told[-1]["of"] = list(tried)
    return told


def shown(seeds: dict[int, dict[str, Any]], names: Sequence[str]) -> None:
    for case in sorted({case for found in seeds.values() for case in found}):
        for seed, found in seeds.items():
            if case in found:
                print(f"{case:28} seed {seed}  " + "  ".join(f"{name} {found[case].get(name)}" for name in names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["planted", "facts", "smollm2"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    seeds: dict[int, dict[str, Any]] = {}
    for number, seed in enumerate(chosen.seeds):
        seeds[seed] = {}
        if "planted" in chosen.parts:
            seeds[seed] |= part_planted(seed)
        if "facts" in chosen.parts:
            seeds[seed] |= part_facts(seed)
        if "smollm2" in chosen.parts:
            seeds[seed] |= part_smollm2(seed, None if number else chosen.picture)
        if chosen.json:
            record = {"claims": judged(seeds), "seeds": seeds, "circumstances": service.circumstances()}
            chosen.json.write_text(json.dumps(record, indent=1) + "\n")
    names = (
        "faithfulness",
        "faithfulness_crossed",
        "bias_only",
        "causality",
        "causality_random",
        "causality_swap",
        "n",
    )
    shown(seeds, names)
    for one in judged(seeds):
        print(f"{len(one['holds_on'])}/{len(one['of'])}  {one['case']}: {one['claim']}")


if __name__ == "__main__":
    main()
