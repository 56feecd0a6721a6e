"""`probe.train`, `erasure.score` and `steer` on the trained models of tests/assets, and the pictures of their pages.

    python benchmarks/methods/probing.py [--seeds 11 12 13] [--json FILE] [--pictures FOLDER]

Thresholds, written before the run, for both models and every seed (the seed chooses the held-out texts):
the token itself is told by the first block with at least .9, an untrained copy of the model is no better at telling the
token two back than the trained one (control); the class of a sentence is told with at least .95 and its shuffled labels
with at most .4 (10 relations). No threshold for erasure: small models are known not to show it; what is found is told
beside its shuffled control. Steering towards Asia: effect at scale 4 above three times each random direction's.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import experiment
import torch
from claims import Claim

from interlace.methods import find, notebook
from interlace.methods.base import Result

ASSETS = Path(__file__).parents[2] / "tests" / "assets"


def sentences(known: list[dict[str, Any]]) -> list[str]:
    return [f"{fact['train'][0]} {fact['object']}." for fact in known]


def steering(known: list[dict[str, Any]]) -> dict[str, Any]:
    """From Europe to Asia, on countries that no direction was made of."""
    of: dict[str, list[str]] = {"Asia": [], "Europe": []}
    for fact in known:
        if fact["relation"] == "continent" and fact["object"] in of:
            of[fact["object"]].append(f"The continent of {fact['subject']} is")
    asked = [{"prompt": one, "wanted": "Asia", "other": "Europe"} for one in of["Europe"][8:]]
    neutral = [text for text, fact in zip(sentences(known), known, strict=True) if fact["relation"] == "job"][:40]
    given = {"positive": of["Asia"][:8], "negative": of["Europe"][:8], "prompts": asked, "neutral": neutral}
    return {**given, "layer": 2, "scales": [-1, 0.5, 1, 2, 4]}


def one_model(name: str, seed: int, folder: Path, pictures: Path | None) -> dict[str, Any]:
    from nnsight.modeling.transformers import TransformersModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = ASSETS / f"facts-{name}-mini"
    known = json.loads((source / "facts.json").read_text())
    model = TransformersModel(str(source), task="text-generation", dispatch=True)
    report = notebook.Notebook(folder, seed=seed, bar=False)
    texts = sentences(known)
    words = {"texts": texts[::2], "layers": [0, 2, 4, 5], "epochs": 10, "batch": 16, "lr": 0.02}
    found: dict[str, Any] = {}

    def drawn(result: Result, what: str) -> None:
        if pictures:
            result.plot().savefig(pictures / f"{what}.png", dpi=80)

    began = time.process_time()
    tokens = notebook.run(find("probe.train"), model, words, report)
    found["tokens"] = [list(row) for row in tokens.table("accuracy").rows]
    drawn(tokens, "probing")
    torch.manual_seed(seed)
    empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source)).eval()
    untrained = TransformersModel(empty, tokenizer=AutoTokenizer.from_pretrained(source))
    control = notebook.run(find("probe.train"), untrained, {**words, "layers": [4]}, report)
    found["untrained"] = [list(row) for row in control.table("accuracy").rows]
    asked = {"probes": tokens.artifacts[0], "texts": texts[1::6], "layer_start": 0, "layer_end": 4}
    subjects = [[_place(text, fact["subject"])] for text, fact in zip(texts, known, strict=True)][1::6]
    erased = notebook.run(find("erasure.score"), model, {**asked, "spans": subjects}, report)
    found["erasure"] = {f"{one.name} {one.split}": one.value for one in erased.metrics}
    found["erasure_accuracy"] = [list(row) for row in erased.table("accuracy").rows]
    drawn(erased, "erasure")
    labels = {"kind": "label", "labels": [fact["relation"] for fact in known]}
    classes = {"texts": [fact["train"][0] for fact in known], "target": labels, "layers": [2], "epochs": 8, "batch": 16}
    told = notebook.run(find("probe.train"), model, {**classes, "lr": 0.02, "validation": 0.2}, report)
    found["labels"] = [list(row) for row in told.table("accuracy").rows]
    steered = notebook.run(find("steer"), model, steering(known), report)
    found["steer"] = [list(row) for row in steered.table("scales").rows]
    drawn(steered, "steering")
    cost = {f"cost_{name}": count for name, count in report.cost.items()}
    return {**found, "cpu_seconds": round(time.process_time() - began, 1), **cost}


def _place(text: str, subject: str) -> tuple[int, int]:
    start = text.index(subject)
    return start, start + len(subject)


def _at_four(of: Mapping[str, Any]) -> dict[str, float]:
    """The effect of each direction at scale 4."""
    return {row[1]: row[2] for row in of["steer"] if row[0] == 4}


def _cell(rows: Sequence[Sequence[Any]], layer: int, offset: int) -> float:
    (found,) = [row[2] for row in rows if (row[0], row[1]) == (layer, offset)]
    return float(found)


CLAIMS = (
    Claim("the token is told at block 0 with at least .9", lambda of: _cell(of["tokens"], 0, 0) >= 0.9),
    Claim(
        "an untrained model tells the token two back no better",
        lambda of: _cell(of["untrained"], 4, -2) <= _cell(of["tokens"], 4, -2),
    ),
    Claim("the class is told with at least .95", lambda of: of["labels"][0][2] >= 0.95),
    Claim("shuffled classes with at most .4", lambda of: of["labels"][0][6] <= 0.4),
    Claim(
        "steering is above three times each random direction",
        lambda of: (
            _at_four(of)["direction"]
            > 3 * max(abs(value) for name, value in _at_four(of).items() if name != "direction")
        ),
    ),
)


if __name__ == "__main__":
    experiment.small_models(
        __doc__,
        CLAIMS,
        one_model,
        lambda found: json.dumps({key: found[key] for key in ("erasure", "labels", "cpu_seconds")}),
    )
