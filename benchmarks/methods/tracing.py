"""`trace.causal` where the place of a fact is forced by the data, and on SmolLM2.

    python benchmarks/methods/tracing.py [--seeds 1 2 3] [--items 12] [--real 0] [--json FILE] [--picture FILE]

For each seed a GPT-2 and a Mamba are trained on planted names (`planted_names.py`; about 40 s of one core each), of
which the surname alone tells who it is. The claims were written before any of these seeds was run. `--real N` traces N
facts that SmolLM2 may know, with noise, at the subject's last token and the prompt's: about 4 s of one core each.
"""

from pathlib import Path
from typing import Any

import experiment
import known_facts
import planted_names
from claims import Claim, smollm2

from interlace.methods import notebook
from interlace.methods.base import Result
from interlace.methods.tracing.plot import plot
from interlace.methods.tracing.spec import SPECS

#: Keys are CLASS.LAYER, the last block's layer -1.
CLAIMS = (
    Claim("the model knows 95 % of the sentences", lambda of: of["accuracy"] >= 0.95, "planted"),
    Claim(
        "the last token of the last block carries all: 1 within .02",
        lambda of: abs(of["last.-1"] - 1) <= 0.02,
        "planted",
    ),
    Claim(
        "before the subject and at its first token there is nothing: 0 within .01",
        lambda of: max(abs(of["prefix"]), abs(of["subject_first"])) <= 0.01,
        "planted",
    ),
    Claim("in blocks 0 and 1 the surname carries .3 or more", lambda of: of["subject_last.early"] >= 0.3, "planted"),
    Claim("... and any other token before the last .15 at most", lambda of: of["further.early"] <= 0.15, "planted"),
    Claim(
        "in block 0 no token carries more than the surname", lambda of: of["subject_last.0"] >= of["last.0"], "planted"
    ),
    Claim(
        "in the last block the surname carries nothing: 0 within .01",
        lambda of: abs(of["subject_last.-1"]) <= 0.01,
        "planted",
    ),
    Claim("at least 20 facts are known", lambda of: of["n"] >= 20, "SmolLM2"),
    Claim(
        "in the first third the subject's last token carries more than the prompt's last",
        lambda of: of["subject_last.third"] > of["last.third"],
        "SmolLM2",
    ),
    Claim(
        "the last token of the last block carries all: 1 within .02",
        lambda of: abs(of["last.-1"] - 1) <= 0.02,
        "SmolLM2",
    ),
)


def figures(result: Result, n_layers: int) -> dict[str, float]:
    """What the claims are of."""
    cells = {
        (str(row[2]), int(row[3])): float(row[4]) for row in result.table("aie").rows if row[:2] == ("resid_post", "")
    }  # type: ignore[arg-type]
    found: dict[str, float] = {}
    for name in ("prefix", "subject_first", "subject_last", "further", "last"):
        line = [cells[name, layer] for layer in range(n_layers)] if (name, 0) in cells else [0.0] * n_layers
        found[name] = max(line, key=abs)
        found |= {f"{name}.0": line[0], f"{name}.-1": line[-1], f"{name}.early": max(line[:2])}
        found[f"{name}.third"] = max(line[: n_layers // 3])
        found |= {f"{name}.layer{layer}": value for layer, value in enumerate(line)}
    return {name: round(value, 4) for name, value in found.items()}


def planted(kind: str, seed: int, number: int, folder: Path) -> dict[str, float]:
    made = planted_names.trained(kind, seed)
    report = notebook.Notebook(folder, seed=seed, bar=False)
    params = {"prompts": planted_names.traced(made, number), "corruption": "alt_subject", "batch": 128}
    result = notebook.run(SPECS[0], made.model, params, report)
    layers = 6 if kind == "gpt" else 4
    return {"accuracy": made.accuracy, "n": float(result.metric("total_effect").n or 0), **figures(result, layers)}


def real(number: int, folder: Path, picture: Path | None) -> dict[str, float]:
    model = smollm2()
    report = notebook.Notebook(folder, bar=True)
    params: dict[str, Any] = {
        "prompts": known_facts.prompts()[:number],
        "samples": 1,
        "positions": ["subject_last", "last"],
        "batch": 32,
    }
    result = notebook.run(SPECS[0], model, params, report)
    if picture is not None:
        plot(result).savefig(picture, dpi=110)
    known = result.metric("known")
    found = figures(result, len(model.model.layers))
    return {"n": float(result.metric("total_effect").n or 0), "known": known.value, **report.cost, **found}


def main() -> None:
    every = experiment.planted_and_real(__doc__, CLAIMS, planted, real)
    for model, of in every.items():
        for token in ("subject_last", "last"):
            line = [f"{of[f'{token}.layer{layer}']:5.2f}" for layer in range(64) if f"{token}.layer{layer}" in of]
            print(f"{model:18} {token:12}", *line)


if __name__ == "__main__":
    main()
