"""`customize.style` on the bundled pipeline: a style from a few examples, and what the second loss is for.

    python benchmarks/methods/style.py [--seeds 4 5 6] [--pictures FOLDER] [--json FILE]

The pipeline draws flat shapes on white. The style, `framed` (a black frame of four pixels), it has never seen. For each
seed six framed squares, rings and triangles teach it, with lambda 0 and 5; it then draws squares, triangles, crosses
and rings with and without the suffix, with and without the adapter. A cross is in no example. A small classifier,
trained on drawings and on what the pipeline's autoencoder makes of them, judges style and content together. With the
adapter of lambda 5 plain drawings are then stylised behind three gates. Last, lambda 5 once more on the attention of
the upsampling half alone, which is often told to be the published adapter and is not. Two to three minutes of one core
for a seed.

This is the second run. In the first (seeds 1 to 3; lr 3e-3, 200 updates) the style was there by .21 to .28 of .90
asked. Pilots on seed 100 (style with the suffix / with a plain prompt): lambda 5 at lr 1e-3 .00 / .00 after 100
updates, .56 / .25 after 200, .87 / .25 after 300; lambda 20, kept at all captions, .00 / .00 after 300; lambda 1 at
lr 3e-3 1.00 / .50 after 100, and the content gone. So lr 1e-3, and 500 updates. Thresholds are those of the first run
(our notes', from a still smaller model); that of attention alone is new; no seed of this run was looked at before.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import drawn_shapes
import tiny_diffusion
import torch
from claims import Claim, judged, written
from nnsight.modeling.diffusion import DiffusionModel

from interlace.methods import find
from interlace.methods.base import Opened, Result
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.denoising import diffusion
from interlace.methods.shared.judge import Judge

STYLE, SHAPES, SEEN = "framed", ("square", "triangle", "cross", "ring"), ("square", "ring", "triangle")
PROMPTS = [(shape, colour) for shape in SHAPES for colour in ("red", "blue")]
SUFFIX = " in the style of sks art"
SETTINGS: dict[str, Any] = {"suffix": SUFFIX, "rank": 8, "batch": 5, "crop": 1}
#: Of each adapter, by its name in figures: without the second loss the style is there after a few updates.
ADAPTERS: dict[str, dict[str, Any]] = {
    "0": {"preserve_lambda": 0, "steps": 60, "lr": 3e-3},
    "5": {"preserve_lambda": 5, "steps": 500, "lr": 1e-3},
    "attention": {"preserve_lambda": 5, "steps": 500, "lr": 1e-3, "target": "attention_up"},
}
#: Keys are METRIC.SPLIT, with its name before those of an adapter: `5.style.token`.
CLAIMS = (
    Claim(
        "the bare model draws no frame with the suffix: style .05 at most", lambda of: of["base.style.token"] <= 0.05
    ),
    Claim("lambda 5: the style is there with the suffix: .90", lambda of: of["5.style.token"] >= 0.9),
    Claim(
        "lambda 5: content with the suffix is within .15 of the bare model's",
        lambda of: of["5.content.token"] >= of["base.content.plain"] - 0.15,
    ),
    Claim("lambda 5: it does not leak: style of plain prompts .05 at most", lambda of: of["5.style.plain"] <= 0.05),
    Claim("lambda 5: plain prompts are drawn plainly: .90", lambda of: of["5.plain_style.plain"] >= 0.9),
    Claim("lambda 0 leaks: style of plain prompts .30 or more", lambda of: of["0.style.plain"] >= 0.3),
    Claim(
        "lambda 5 moves plain predictions by less than a tenth of what lambda 0 does",
        lambda of: of["5.preserve_mse"] < 0.1 * of["0.preserve_mse"],
    ),
    Claim(
        "attention alone learns less of the style than all modules, by .10",
        lambda of: of["attention.style.token"] <= of["5.style.token"] - 0.1,
    ),
    Claim("a gate at every t leaves a plain drawing unframed: .05 at most", lambda of: of["gate.0"] <= 0.05),
    Claim("a gate at 800 frames it: .50 or more", lambda of: of["gate.800"] >= 0.5),
)


def figures(result: Result, name: str) -> dict[str, float]:
    """An adapter's figures, and the controls without it."""
    splits = {
        "style prompt": f"{name}.%s.token",
        "plain prompt": f"{name}.%s.plain",
        "base, style prompt": "base.%s.token",
        "base, plain prompt": "base.%s.plain",
    }
    found = {splits[one.split] % one.name: one.value for one in result.metrics if one.split in splits}
    found[f"{name}.preserve_mse"] = result.metric("preserve_mse", "after").value
    found[f"{name}.style_loss"] = result.metric("style_loss", "after").value
    return found


def one_seed(model: Any, judge: tuple[Any, ...], seed: int, folder: Path, pictures: Path | None) -> dict[str, float]:
    notebook = Notebook(folder / str(seed), seed=seed, bar=False)
    ref = notebook.artifact(*judge)
    examples = notebook.artifact("images", *drawn_shapes.draw(6, seed, (STYLE,), SEEN).images.pack())
    evaluation = {
        "prompts": [drawn_shapes.caption(*one) for one in PROMPTS],
        "contents": [f"content/{shape}" for shape, _ in PROMPTS],
        "n_per_prompt": 1,
        "steps": 10,
        "guidance": 3,
        "batch": 16,
        "judge": ref,
        "style": f"style/{STYLE}",
        "plain_style": "style/plain",
    }
    found: dict[str, float] = {}
    adapter = ""
    for name, how in ADAPTERS.items():
        asked = {**SETTINGS, **how, "images": examples, "evaluation": evaluation}
        result = run(find("customize.style"), model, asked, notebook)
        found |= figures(result, name)
        found[f"{name}.modules"] = result.matched
        adapter = result.artifacts[0] if name == "5" else adapter
        if pictures is not None:
            (pictures / f"style-{name}.png").write_bytes(result.pictures[-1].data)
    plain = drawn_shapes.draw(8, 50 + seed, shapes=SHAPES).images
    given = notebook.artifact("images", *plain.pack())
    for gate in (0, 400, 800):
        asked = {"images": given, "adapter": adapter, "suffix": SUFFIX, "gate_t": gate, "start_t": 900, "steps": 10}
        redrawn = run(find("images.stylise"), model, {**asked, "guidance": 3, "judge": ref, "style": STYLE}, notebook)
        found[f"gate.{gate}"] = redrawn.metric("style", "after").value
        found[f"gate.{gate}.distance"] = redrawn.metric("distance").value
        if pictures is not None and gate == 800:
            (pictures / "stylised.png").write_bytes(redrawn.pictures[0].data)
    return {name: round(value, 4) for name, value in found.items()}


def made_judge(model: Any, folder: Path) -> tuple[tuple[Any, ...], dict[str, float]]:
    """The classifier, and how often it is right on drawings of its own seed, through the autoencoder too."""
    with diffusion.opened(model, Notebook(folder, bar=False)) as pipeline:
        made = drawn_shapes.judge(pipeline, n=1500, steps=600)
        held = drawn_shapes.draw(200, 77, drawn_shapes.JUDGED)
        again = pipeline.decode(pipeline.encode_images(held.pixels).mean)
    judge = Judge.of(Opened(made[0], made[1], made[2], "judge"))
    found = {}
    for name, pixels in (("drawn", held.pixels), ("through the autoencoder", again)):
        for head, truth in (("content", held.shape), ("style", held.style)):
            found[f"{head}, {name}"] = float((judge.chances(pixels, head).argmax(-1) == truth).float().mean())
    return made, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[4, 5, 6])
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)
    every: dict[str, Mapping[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        judge, right = made_judge(model, Path(name))
        print("the judge is right:", right, flush=True)
        for seed in arguments.seeds:
            begun = time.process_time()
            found = one_seed(model, judge, seed, Path(name), arguments.pictures)
            every[f"seed-{seed}"] = {**found, "cpu_seconds": round(time.process_time() - begun, 1)}
            print(f"seed {seed}", every[f"seed-{seed}"], flush=True)
            verdicts = judged(CLAIMS, every)
            written(arguments.json, every, verdicts, judge=right, settings={**SETTINGS, "adapters": ADAPTERS})


if __name__ == "__main__":
    main()
