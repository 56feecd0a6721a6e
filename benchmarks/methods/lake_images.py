"""`lake.attribute_images` on the bundled pipeline: which of three styles' adapters has drawn pictures.

    python benchmarks/methods/lake_images.py [--seeds 1 2 3] [--json FILE]

For each seed `customize.style` makes three adapters of six drawings each (`framed`, `shaded`, `haloed`; rank 8, lambda
0, lr 3e-3, 60 updates). Each adapter, and the bare model, then draw 8 pictures with the style's words in the
prompt, from noise of their own. Two of the adapters and the bare model are candidates; the third is the control:
somebody else's, of which no answer is right. A second control are drawings in a candidate's style that no model has
made. And once the prompts are told wrong: each picture has another's.

Thresholds, written before the run, for each seed:
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import drawn_shapes
import tiny_diffusion
import torch
from claims import Claim, judged, written
from nnsight.modeling.diffusion import DiffusionModel

from interlace.methods import find
from interlace.methods.base import Result
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.denoising import diffusion
from interlace.methods.shared.denoising.adapted import adapted
from interlace.methods.shared.images import Images

STYLES, SEEN = ("framed", "shaded", "haloed"), ("square", "ring", "triangle")
SUFFIX = " in the style of sks art"
PROMPTS = [drawn_shapes.caption(*one) for one in ((s, c) for s in drawn_shapes.SHAPES[:4] for c in ("red", "blue"))]
STEPS = 60
CLAIMS = (
    Claim("a candidate's 8 pictures are attributed to it, and decided", lambda of: of["right"] == 1.0),
    Claim("of single pictures at least .8 are", lambda of: of["single"] >= 0.8),
    Claim("the bare model's are attributed to it, not to an adapter", lambda of: of["bare_right"] == 1.0),
    Claim("with the prompts told wrong the candidates' are still found", lambda of: of["wrong_prompts"] == 1.0),
    Claim(
        "drawings in a style that no model has made are attributed to its adapter: it is the likeliest, not the author",
        lambda of: of["drawings_taken"] == 1.0,
    ),
    Claim("what somebody else's adapter has drawn is undecided", lambda of: of["stranger_decided"] == 0.0),
)
__doc__ = (__doc__ or "") + "\n".join(f"* {one.says}" for one in CLAIMS) + "\n"


def made(model: Any, notebook: Notebook, seed: int) -> dict[str, str]:
    """Adapters, by style."""
    found = {}
    for style in STYLES:
        examples = notebook.artifact("images", *drawn_shapes.draw(6, seed, (style,), SEEN).images.pack())
        asked = {"images": examples, "suffix": SUFFIX, "rank": 8, "batch": 5, "crop": 1, "preserve_lambda": 0}
        asked |= {"steps": STEPS, "lr": 3e-3, "evaluation": {"n_per_prompt": 0}}
        found[style] = run(find("customize.style"), model, asked, notebook).artifacts[0]
    return found


def drawn(model: Any, notebook: Notebook, adapters: dict[str, str], seed: int) -> dict[str, Images]:
    """What each has drawn, and `bare` the model without them."""
    found = {}
    with diffusion.opened(model, notebook) as pipeline:
        for number, (name, ref) in enumerate([*adapters.items(), ("bare", None)]):
            seeds = [100_000 * seed + 1000 * number + one for one in range(len(PROMPTS))]
            with adapted(pipeline, notebook, ref, "c") as layers:
                if layers is not None:
                    layers.use({"c": 1.0})
                pixels = pipeline.draw([one + SUFFIX for one in PROMPTS], seeds=seeds, steps=10, guidance=3)
            found[name] = Images.of_pixels(pixels, PROMPTS, "made for this experiment")
    return found


def of_seed(model: Any, seed: int, folder: Path) -> dict[str, float]:
    notebook = Notebook(folder / str(seed), seed=seed, bar=False)
    adapters = made(model, notebook, seed)
    pictures = drawn(model, notebook, adapters, seed)
    stranger = STYLES[seed % len(STYLES)]
    candidates = [one for one in STYLES if one != stranger]
    names = {"model": "bare"} | {adapters[one]: one for one in candidates}

    def asked(images: Images) -> Result:
        ref = notebook.artifact("images", *images.pack())
        params = {"images": ref, "candidates": [adapters[one] for one in candidates], "suffix": SUFFIX}
        return run(find("lake.attribute_images"), model, params, notebook)

    def right(images: Images, of: str) -> tuple[float, float]:
        """Whether it is found and decided, and the share of single pictures that are."""
        result = asked(images)
        wins = {names[str(row[0])]: float(row[4]) for row in result.table("candidates").rows}
        return float(names[result.best] == of and result.metric("decided").value == 1), wins[of] / len(images)

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    each = {name: right(pictures[name], name) for name in (*candidates, "bare")}
    wrong = [
        right(Images.of_pixels(pictures[one].pixels, PROMPTS[3:] + PROMPTS[:3], "as above"), one)[0]
        for one in candidates
    ]
    drawings = [right(drawn_shapes.draw(8, 900 + seed, (one,), SEEN).images, one)[0] for one in candidates]
    other = asked(pictures[stranger])
    return {
        "right": mean([each[one][0] for one in candidates]),
        "single": mean([each[one][1] for one in candidates]),
        "bare_right": each["bare"][0],
        "bare_single": each["bare"][1],
        "wrong_prompts": mean(wrong),
        "drawings_taken": mean(drawings),
        "stranger_decided": other.metric("decided").value,
        "stranger_taken_for_bare": float(other.best == "model"),
        "stranger_margin": other.metric("margin").value,
        "chance": 1 / (len(candidates) + 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)
    every: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for seed in arguments.seeds:
            every[f"seed {seed}"] = of_seed(model, seed, Path(name))
            print(seed, json.dumps(every[f"seed {seed}"]), flush=True)
            written(arguments.json, every, judged(CLAIMS, every))


if __name__ == "__main__":
    main()
