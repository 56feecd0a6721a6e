"""A look into a hosted diffusion pipeline: how a picture comes out of noise, and which steps decide what it shows.

    python examples/denoising.py --model REPO                # on the Interlace at $NDIF_HOST
    python examples/denoising.py --local --model ./FOLDER    # the same code on this machine

Plain nnsight, for every pipeline whose denoiser is a `unet` that is told the prompt by cross-attention, as that of
Stable Diffusion. The pipeline opened here is a skeleton without weights.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

# Where nnsight sends traces, and where the small files come from. Both are read at import.
os.environ.setdefault("NDIF_HOST", "http://127.0.0.1:8000")
os.environ.setdefault("HF_ENDPOINT", os.environ["NDIF_HOST"] + "/hf")

import matplotlib.pyplot as plt
import numpy as np
import torch
from nnsight import CONFIG
from nnsight.modeling.diffusion import DiffusionModel

RED, BLUE = "a large red triangle", "a large blue square"


def passes_of(model: DiffusionModel, steps: int) -> int:
    """How often the denoiser is asked in so many steps: PNDM, Stable Diffusion's own scheduler, takes one twice."""
    model.pipeline.scheduler.set_timesteps(steps)
    return len(model.pipeline.scheduler.timesteps)


def strip(model: DiffusionModel, prompt: str, settings: dict[str, Any], remote: bool) -> list[torch.Tensor]:
    """What the latents look like on their way: noise, then a picture after each pass; each [3, height, width]."""
    scale = model.pipeline.vae.config.scaling_factor
    passes = passes_of(model, settings["num_inference_steps"])
    with model.session(remote=remote):  # a generation and the decoding of what it went through: one request
        with model.generate(prompt, **settings, output_type="latent") as tracer:
            latents = []
            for _step in tracer.iter[:passes]:
                latents.append(model.unet.input[:1])  # with guidance there are two rows, of the same latents
            latents.append(model.output.images)
        with model.vae.trace(torch.cat(latents) / scale, fn="decode"):
            pictures = model.vae.decoder.output.detach().save()
    return list(pictures)


def switched(model: DiffusionModel, settings: dict[str, Any], remote: bool) -> list[np.ndarray]:
    """Pictures of one noise: `RED` is asked for, and from pass k on the denoiser is told `BLUE`, for k = all to 0."""
    passes = passes_of(model, settings["num_inference_steps"])
    pictures = []
    with model.session(remote=remote):
        with model.generate(BLUE, **settings):
            words = model.unet.inputs[1]["encoder_hidden_states"]
        for switch in range(passes, -1, -1):
            with model.generate(RED, **settings, output_type="np") as tracer:
                for step in tracer.iter[:passes]:
                    if step >= switch:
                        model.unet.inputs[1]["encoder_hidden_states"] = words
                picture = model.output.images[0]
            pictures.append(picture)
        pictures.save()
    return pictures


def colour(picture: np.ndarray) -> str:
    """The one of red, green and blue that a picture on a white ground has most of."""
    return ("red", "green", "blue")[int(picture.reshape(-1, 3).mean(0).argmax())]


def draw(rows: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """A row of pictures, each with its label below, for each caption."""
    width = max(map(len, rows.values()))
    figure = plt.figure(figsize=(1.02 * width, 1.6 * len(rows)), layout="constrained")
    for part, (caption, pictures) in zip(figure.subfigures(len(rows)), rows.items(), strict=True):
        part.suptitle(caption, x=0.01, ha="left", fontsize=12)
        for axes, (label, picture) in zip(part.subplots(1, width), pictures.items(), strict=False):
            axes.imshow(np.clip(picture, 0, 1), interpolation="nearest")
            axes.set_xlabel(label, fontsize=10)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the id that `interlace status` shows, or with --local a folder")
    parser.add_argument("--local", action="store_true", help="load the weights here, without a server")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    options = parser.parse_args()
    CONFIG.APP.REMOTE_LOGGING = sys.stdout.isatty()  # the live status of a job, with its steps, needs a terminal
    model = DiffusionModel(options.model, dispatch=options.local)
    settings = {"num_inference_steps": options.steps, "guidance_scale": 3.0, "seed": 0}
    passes = passes_of(model, options.steps)

    print(f'drawing "{RED}" in {options.steps} steps ...', flush=True)
    seen = [picture.permute(1, 2, 0).numpy() / 2 + 0.5 for picture in strip(model, RED, settings, not options.local)]
    print(f'\ntelling the denoiser "{BLUE}" from some step on ...', flush=True)
    pictures = switched(model, settings, not options.local)
    print("\ntold from step   the picture is")
    for switch, picture in zip(range(passes, -1, -1), pictures, strict=True):
        print(f"{'never' if switch == passes else switch:>14}   {colour(picture)}")
    path = options.out / "denoising.png"
    after = ["noise", *map(str, range(1, passes + 1))]
    told = ["never", *(f"from {step}" for step in reversed(range(passes)))]
    rows = {
        f'"{RED}", after so many steps': dict(zip(after, seen, strict=True)),
        f'... and where the denoiser is told "{BLUE}" from a step on': dict(zip(told, pictures, strict=True)),
    }
    draw(rows, path)
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
