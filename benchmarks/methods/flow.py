"""`flow.knockout` where it is known what the answer hears, and on SmolLM2.

    python benchmarks/methods/flow.py [--seeds 1 2 3] [--items 12] [--real 0] [--json FILE] [--picture FILE]

The planted models (`planted_names.py`) tell a fact by the surname alone, in sentences one of whose tokens says nothing:
the beginning. SmolLM2 is asked for N capitals as "As everybody knows, X has its capital in the city of": the subject,
the words of the relation behind it, and filler before it (about 12 s of one core each). Each set of tokens is cut from
the last one in windows of layers. The claims were written before any of this was run; -1 is all of the probability.
"""

from pathlib import Path
from typing import Any

import experiment
import known_facts
import planted_names
from claims import Claim, smollm2

from interlace.methods import find, notebook
from interlace.methods.base import Result

_FILLER = "As everybody knows, "
_WINDOW = {"gpt": 3, "mamba": 2}  # half of the blocks
CLAIMS = (
    Claim("cutting the subject costs .5 or more in some window", lambda of: of["subject"] <= -0.5, "planted"),
    Claim(
        "cutting the surname alone costs as much, within .1",
        lambda of: abs(of["subject_last"] - of["subject"]) <= 0.1,
        "planted",
    ),
    Claim("cutting the first name costs .1 at most", lambda of: of["subject_first"] >= -0.1, "planted-gpt"),
    Claim("five of six capitals are known", lambda of: of["known"] >= 5 / 6, "SmolLM2"),
    Claim("cutting the subject costs .5 or more in some window", lambda of: of["subject"] <= -0.5, "SmolLM2"),
    Claim("cutting the filler costs less than half of that", lambda of: of["prefix"] >= of["subject"] / 2, "SmolLM2"),
    Claim(
        "the subject is heard after the words of the relation: its worst window is a later one",
        lambda of: of["subject.layer"] > of["further.layer"],
        "SmolLM2",
    ),
    Claim("in the last third the filler costs .1 at most", lambda of: of["prefix.late"] >= -0.1, "SmolLM2"),
)


def figures(result: Result, n_layers: int) -> dict[str, float]:
    """The largest loss of each set of tokens, its layer and interval, and the whole line."""
    found: dict[str, float] = {"n": 0.0, "known": result.metric("known").value}
    lines: dict[str, list[Any]] = {}
    for row in result.table("flow").rows:
        lines.setdefault(str(row[0]), []).append(row)
    for block, rows in lines.items():
        worst = min(rows, key=lambda row: row[2])
        found |= {block: worst[2], f"{block}.layer": float(worst[1]), "n": float(worst[5])}
        found[f"{block}.late"] = min(row[2] for row in rows[-(n_layers // 3) :])
        if worst[3] is not None:
            found |= {f"{block}.low": worst[3], f"{block}.high": worst[4]}
        found |= {f"{block}.layer{row[1]}": row[2] for row in rows}
    return {name: round(float(value), 4) for name, value in found.items()}


def planted(kind: str, seed: int, number: int, folder: Path) -> dict[str, float]:
    made = planted_names.trained(kind, seed)
    prompts = [
        {name: one[name] for name in ("text", "subject", "answer")} for one in planted_names.traced(made, number)
    ]
    block = ["subject", "subject_first", "subject_last", "prefix", "further"]
    params = {"prompts": prompts, "window": _WINDOW[kind], "block": block}
    report = notebook.Notebook(folder, seed=seed, bar=False)
    result = notebook.run(find("flow.knockout"), made.model, params, report)
    return {"accuracy": made.accuracy, **figures(result, 6 if kind == "gpt" else 4)}


def real(number: int, folder: Path, picture: Path | None) -> dict[str, float]:
    model = smollm2()
    prompts = [
        {"text": f"{_FILLER}{country} has its capital in the city of", "subject": country, "answer": city}
        for country, city in known_facts.capitals()[:number]
    ]
    report = notebook.Notebook(folder, bar=False)
    params = {"prompts": prompts, "window": 6, "block": ["subject", "prefix", "further"]}
    result = notebook.run(find("flow.knockout"), model, params, report)
    if picture is not None:
        result.plot().savefig(picture, dpi=90)
    return {**report.cost, **figures(result, len(model.model.layers))}


if __name__ == "__main__":
    experiment.planted_and_real(__doc__, CLAIMS, planted, real)
