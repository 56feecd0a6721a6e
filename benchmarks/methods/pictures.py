"""The pictures of docs/methods on tracing, knockouts and paths: the facts models of tests/assets, a minute of one core.

python benchmarks/methods/pictures.py [FOLDER]
"""

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from nnsight import TransformersModel
from PIL import Image

from interlace.methods import find, notebook
from interlace.methods.flow.plot import plot as flow_plot
from interlace.methods.tracing.plot import plot as tracing_plot

_ROOT = Path(__file__).parent.parent.parent
_ASSETS = _ROOT / "tests" / "assets"
_PEOPLE = 12
_TOKENS = 3  # of a country, for paths
_PATHS = {
    "senders": {"family": "parts", "sites": ["attn_out", "mlp_out"]},
    "receivers": [
        {"site": "logits"},
        *[{"site": site, "layer": layer} for site in ("attn_out", "mlp_out") for layer in range(1, 6)],
    ],
}


def pairs(tokenizer: Any) -> list[dict[str, str]]:
    """Countries of Asia and of Europe whose prompts have the commonest number of tokens."""
    known = json.loads((_ASSETS / "facts-gpt-mini" / "facts.json").read_text())
    of: dict[str, list[str]] = {"Asia": [], "Europe": []}
    for fact in known:
        if fact["relation"] == "continent" and len(tokenizer(fact["subject"]).input_ids) == _TOKENS:
            of.setdefault(fact["object"], []).append(fact["subject"])
    text = "{} is located on the continent of"
    return [
        {"base": text.format(one), "source": text.format(other), "answer": "Asia", "source_answer": "Europe"}
        for one, other in zip(of["Asia"], of["Europe"], strict=False)
    ][: _PEOPLE // 2]


def prompts() -> list[dict[str, str]]:
    """People's jobs, worded so that the relation comes first."""
    people = [
        one for one in json.loads((_ASSETS / "facts-gpt-mini" / "facts.json").read_text()) if one["relation"] == "job"
    ]
    found = []
    for fact in people:
        text = next((one for one in fact["train"] if not one.startswith(fact["subject"])), None)
        if text is not None:
            found.append({"text": text, "subject": fact["subject"], "answer": fact["object"]})
    return found[:_PEOPLE]


def beside(figures: list[Figure], file: Path) -> None:
    images = []
    for figure in figures:
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=90)
        images.append(Image.open(drawn).convert("RGB"))
    whole = Image.new("RGB", (sum(one.width for one in images), max(one.height for one in images)), "white")
    left = 0
    for one in images:
        whole.paste(one, (left, 0))
        left += one.width
    whole.quantize(64).save(file, optimize=True)
    print(file, file.stat().st_size, "bytes")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else _ROOT / "docs" / "methods"
    torch.set_num_threads(1)
    flows: list[Figure] = []
    traces: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        for asset, window, states in (
            ("facts-gpt-mini", 3, ["resid_post", "attn_out", "mlp_out"]),
            ("facts-mamba-mini", 2, ["resid_post", "ssm_out", "mixer_out"]),
        ):
            model = TransformersModel(str(_ASSETS / asset), task="text-generation", dispatch=True)
            report = notebook.Notebook(name, bar=False)

            def run(method: str, params: dict[str, Any]) -> Any:
                return notebook.run(find(method), model, params, report)  # noqa: B023 - called at once

            if asset == "facts-gpt-mini":
                figure = run("mediate.paths", {"pairs": pairs(model.tokenizer), **_PATHS}).plot()
                figure.set_size_inches(6, 3.6)
                beside([figure], folder / "paths.png")
            cut = run("flow.knockout", {"prompts": prompts(), "window": window, "block": ["subject", "prefix"]})
            flows.append(flow_plot(cut))
            how = {"samples": 2, "states": states, "window": 3, "batch": 128}
            traces.append(tracing_plot(run("trace.causal", {"prompts": prompts()[:6], **how})))
            print(asset, [(one.name, round(one.value, 3), one.split) for one in cut.metrics])
    beside(flows, folder / "flow.png")
    beside(traces, folder / "tracing.png")


if __name__ == "__main__":
    main()
