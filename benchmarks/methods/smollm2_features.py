"""Circuits, SHIFT and clusters on SmolLM2-135M with trained dictionaries: what comes out, and what it costs.

    python benchmarks/methods/smollm2_features.py TEXTS DICTIONARIES [--parts circuits reading shift] [--json FILE]

TEXTS is the folder of `review_sentences`, DICTIONARIES what `smollm2_dictionaries.py` wrote: at the embeddings and
after block 4.

**circuits**: subject and verb, `The films that the critics liked` is or are, patched with the other number; estimates
against exact patching of nodes drawn by the seed; faithfulness on other nouns. **reading**: `feature.describe` and
`behaviors.cluster` on review sentences. **shift**: sentences on films and restaurants, good or bad; a head on the
states after block 6 learns which is good where all films are good and all restaurants bad. Whoever marks is a rule that
sees contexts and knows words of films and of restaurants.

CPU-seconds, passes and the growth of the process's peak memory are of each call. Claims were written before the run;
there was no pilot. They are few: what else comes out is told.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import circuit
import review_sentences
from claims import Claim, judged, smollm2, written
from review_sentences import FILM, FOOD, Review

from interlace.methods import find, notebook

CLAIMS = (
    Claim(
        "pairs: full IG's Spearman with exact patching is at least .8", lambda f: f["ig spearman"] >= 0.8, "circuits"
    ),
    Claim("pairs: AtP's Spearman is at least .8", lambda f: f["atp spearman"] >= 0.8, "circuits"),
    Claim("pairs: with reach .25 slope in .7 to 1.3", lambda f: 0.7 <= f["reach .25 slope"] <= 1.3, "circuits"),
    Claim("other nouns: 100 nodes have a faithfulness of .5", lambda f: f["faithfulness 100"] >= 0.5, "circuits"),
    Claim("as many random nodes at most .2", lambda f: f["random 100"] <= 0.2, "circuits"),
    Claim("as trained: intended at most .75", lambda f: f["original intended"] <= 0.75, "shift"),
    Claim("as trained: what is reviewed at least .75", lambda f: f["original spurious"] >= 0.75, "shift"),
    Claim(
        "SHIFT, retrained: intended at least .05 above",
        lambda f: f["ablated, retrained intended"] >= f["original intended"] + 0.05,
        "shift",
    ),
    Claim(
        "SHIFT, retrained: what is reviewed at least .1 below",
        lambda f: f["ablated, retrained spurious"] <= f["original spurious"] - 0.1,
        "shift",
    ),
    Claim(
        "random features move intended by at most .03",
        lambda f: abs(f["random intended"] - f["original intended"]) <= 0.03,
        "shift",
    ),
)
_NOUNS = (
    "film", "actor", "movie", "book", "song", "show", "game", "story", "team", "driver", "writer", "player", "doctor",
    "friend", "teacher", "student",
)  # fmt: skip
_WORDS = {
    FILM: "film films movie movies actor actors actress acting cast character characters plot scene scenes script "
    "story director directing cinema screen watch watched watching dialogue camera performance performances ending "
    "cinematography",
    FOOD: "food restaurant restaurants place service server servers waiter waitress menu eat eating ate dinner lunch "
    "breakfast meal taste tasted chicken pizza burger burgers salad fries sushi steak sauce cheese bread beer table "
    "staff buffet order ordered vegas dish dishes sandwich soup rice beef pork",
    "judgement": "good great bad best worst love loved terrible awful excellent amazing delicious horrible nice "
    "wonderful boring disappointed disappointing awesome fantastic poor slow stupid waste avoid recommend like liked "
    "perfect",
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_NEAR = 8  # words up to the strongest that whoever marks reads


def is_of_topic(contexts: Sequence[Any], share: float = 0.8) -> bool:
    """What somebody would say who sees a feature's contexts and nothing else: that it is of films, or of restaurants.

    In each the last telling word of the eight up to where it is strongest; of these, which must be there in half of
    the contexts, ``share`` or more are of one topic.
    """
    seen = []
    for context in contexts:
        words = re.findall(r"[a-z]+", "".join(context.tokens[: context.at + 1]).lower())[-_NEAR:]
        told = [_KINDS[word] for word in words if word in _KINDS]
        seen += told[-1:]
    return 2 * len(seen) >= len(contexts) > 0 and max(map(seen.count, (FILM, FOOD))) >= share * len(seen)


def pairs(tokenizer: Any) -> list[dict[str, str]]:
    """Both numbers of each noun, where both have as many tokens as most."""
    found = []
    for noun in _NOUNS:
        one, many = (f"The {word} that the critics liked" for word in (noun, noun + "s"))
        if len(tokenizer(one)["input_ids"]) == len(tokenizer(many)["input_ids"]) == 6:
            found.append({"clean": one, "patch": many, "answer": " is", "patch_answer": " are"})
            found.append({"clean": many, "patch": one, "answer": " are", "patch_answer": " is"})
    return found


def circuits(model: Any, saes: list[str], folder: Path) -> dict[str, float]:
    report = notebook.Notebook(folder, seed=71, bar=False)
    every = pairs(model.tokenizer)
    data, held = every[:4], every[4:12]
    figures: dict[str, float] = {"pairs": len(data), "held_out_pairs": len(held)}
    asked: dict[str, Any] = {"saes": saes, "data": data, "batch": 16}
    ways = {"atp": {"method": "atp"}, "ig": {}, "reach .25": {"ig_reach": 0.25}}
    made: dict[str, Any] = {}
    for name, more in ways.items():
        params = {**asked, "topk": 2000, "check": 40, **more}
        made[name] = circuit.cost(figures, f"circuit.nodes, {name}", circuit.NODES, model, params, report)
        for figure in ("pearson", "spearman", "slope"):
            figures[f"{name} {figure}"] = made[name].metric(figure).value
    figures["total effect"], figures["active nodes"] = (
        made["ig"].metric(name).value for name in ("total_effect", "active_nodes")
    )
    edges = {**asked, "nodes": made["ig"].circuit, "max_nodes": 30}
    circuit.cost(figures, "circuit.edges, 30 nodes", circuit.EDGES, model, edges, report)
    params = {**asked, "data": held, "nodes": made["ig"].circuit, "sizes": [30, 100, 300], "controls": 1}
    measured = circuit.cost(figures, "circuit.evaluate, 3 sizes", circuit.EVALUATE, model, params, report)
    table = measured.table("faithfulness")
    for row in (dict(zip(table.columns, one, strict=True)) for one in table.rows):
        figures[f"faithfulness {row['size']}"], figures[f"random {row['size']}"] = row["faithfulness"], row["random"]
        figures[f"without {row['size']}"], figures[f"share {row['size']}"] = row["completeness"], row["share"]
    return figures


def reading(model: Any, saes: list[str], folder: Path, texts: Path) -> dict[str, float]:
    report = notebook.Notebook(folder, seed=71, bar=False)
    sentences = [one.text for one in review_sentences.reviews(texts)][:40]
    figures: dict[str, float] = {"sentences": len(sentences)}
    params: dict[str, Any] = {"sae": saes[1], "data": sentences, "features": list(range(8)), "context": 24}
    circuit.cost(figures, "feature.describe, 8 features", find("feature.describe"), model, params, report)
    params = {"data": sentences, "saes": saes, "vectors": "sae_effect", "samples": 24, "clusters": 3, "ce_max": 1.0}
    params |= {"circuit_samples": 4, "nodes": 6, "circuit_edges": 20, "ig_steps": 5, "context": 24}
    found = circuit.cost(figures, "behaviors.cluster, 24 samples", find("behaviors.cluster"), model, params, report)
    for split in ("vectors", "shuffled"):
        figures[f"silhouette {split}"] = found.metric("silhouette", split).value
    for one in found.clusters:
        print(one.number, one.size, one.tokens[:6], one.nodes[:3])
    return figures


def shift(model: Any, saes: list[str], folder: Path, texts: Path, seed: int) -> dict[str, float]:
    report = notebook.Notebook(folder, seed=seed, bar=False)
    ambiguous, rest = review_sentences.confounded(review_sentences.reviews(texts), seed, train=240)
    by_group: dict[tuple[str, bool], list[Review]] = {}
    for one in rest:
        by_group.setdefault((one.about, one.is_good), []).append(one)
    judges = [one for own in by_group.values() for one in own[:40]]
    teachers = [one for own in by_group.values() for one in own[40:100]]
    params: dict[str, Any] = {
        **{"saes": saes, "layer": 6, "context": 24, "skip_first": 1, "epochs": 20, "model_batch": 16, "controls": 2},
        **{"ambiguous": [one.text for one in ambiguous], "labels": [_said(one.is_good) for one in ambiguous]},
        **{"balanced": [one.text for one in judges], "intended": [_said(one.is_good) for one in judges]},
        **{"spurious": [_said(one.about == FILM) for one in judges]},
        **{"oracle": [one.text for one in teachers], "oracle_labels": [_said(one.is_good) for one in teachers]},
        **{"examples": 24, "ig_steps": 5, "candidates": 100},
    }
    figures: dict[str, float] = {}
    first = circuit.cost(figures, "classifier.shift, first", find("classifier.shift"), model, params, report)
    marked = [
        {"place": one.place, "feature": one.feature} for one in first.candidates if is_of_topic(one.shown.contexts)
    ]
    figures |= {"candidates": len(first.candidates), "marked": len(marked)}
    more = {**params, "head": first.head, "ablate": marked}
    second = circuit.cost(figures, "classifier.shift, second", find("classifier.shift"), model, more, report)
    return figures | {f"{one.split} {one.name}": one.value for one in second.metrics}


def _said(is_good: bool) -> str:
    return "good" if is_good else "bad"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("dictionaries", type=Path)
    parser.add_argument("--parts", nargs="+", default=["circuits", "reading", "shift"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[61, 62, 63], help="of shift")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = smollm2()
    told = json.loads((args.dictionaries / "dictionaries.json").read_text())
    saes = [one.pop("sae") for one in told]
    found: dict[str, Any] = {}
    for part in args.parts:
        for seed in args.seeds if part == "shift" else [0]:
            key = f"shift {seed}" if part == "shift" else part
            with tempfile.TemporaryDirectory() as folder:
                if part == "circuits":
                    found[key] = circuits(model, saes, Path(folder))
                elif part == "reading":
                    found[key] = reading(model, saes, Path(folder), args.texts)
                else:
                    found[key] = shift(model, saes, Path(folder), args.texts, seed)
            print(key, found[key], flush=True)
            mine = [one for one in CLAIMS if any(name.startswith(one.of) for name in found)]
            written(args.json, found, judged(mine, found), dictionaries=told)


if __name__ == "__main__":
    sys.exit(main())
