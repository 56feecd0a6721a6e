"""Which patches of a picture a vision transformer needs, and until which layer: remove each one, at each layer.

    interlace up --model ./tests/assets/shapes-vit-mini --task image-classification   # in one terminal
    python examples/vision_patches.py                                                 # in another
    python examples/vision_patches.py --local --model ./tests/assets/shapes-vit-mini

Plain nnsight. The pictures go to the server as they are; the model's own processor makes them into pixels there.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("NDIF_HOST", "http://127.0.0.1:8000")
os.environ.setdefault("HF_ENDPOINT", os.environ["NDIF_HOST"] + "/hf")

import matplotlib.pyplot as plt
import torch
from nnsight import CONFIG
from nnsight.modeling.transformers import TransformersModel
from PIL import Image, ImageDraw


def pictures() -> list[Image.Image]:
    """A circle, a square and a triangle, each in a corner of its own."""
    images = [Image.new("RGB", (24, 24), ground) for ground in ((60, 30, 20), (20, 50, 40), (30, 30, 70))]
    pens = [ImageDraw.Draw(image) for image in images]
    pens[0].ellipse((2, 3, 14, 15), (240, 200, 150))
    pens[1].rectangle((10, 9, 20, 19), (150, 230, 190))
    pens[2].polygon([(9, 7), (3, 19), (15, 19)], (190, 180, 250))
    return images


def needed(model: TransformersModel, images: list[Image.Image], remote: bool) -> tuple[list[str], torch.Tensor]:
    """What each picture is taken for, and [pictures, layers + 1, patches]: how far the answer's logit falls, over the
    best other one, without a patch; first without its embedding, then without its residual stream after each layer.
    """
    patches = (model.config.image_size // model.config.patch_size) ** 2
    every = range(patches)
    labels, falls = [], []
    for image in images:  # a request each
        with model.session(remote=remote):
            with model.trace(image):
                logits = model.output.logits[0]
                answer = logits.argmax()
            found = [].save()
            sites = [model.vit.embeddings, *model.vit.layers]
            for site in sites:
                with model.trace([image] * patches):  # one row for each patch; token 0 is the class token
                    mean = site.output[:, 1:].mean(dim=1)
                    site.output[every, [patch + 1 for patch in every]] = mean
                    logits = model.output.logits
                    others = logits.clone()
                    others[:, answer] = float("-inf")
                    found.append((logits[:, answer] - others.max(dim=-1).values).detach())
            with model.trace(image):
                others = model.output.logits[0].clone()
                whole = others[answer].clone()
                others[answer] = float("-inf")
                margin = (whole - others.max()).detach().save()
            label = answer.item().save()
        labels.append(model.config.id2label[label])
        falls.append(margin - torch.stack(found))
    return labels, torch.stack(falls)


def draw(images: list[Image.Image], labels: list[str], falls: torch.Tensor, path: Path) -> None:
    """A row a picture, a column a place: red where the answer needs a patch of it, blue where it is surer without."""
    side = round(falls.shape[-1] ** 0.5)
    titles = ["the picture", "its embedding", *(f"after layer {layer}" for layer in range(falls.shape[1] - 1))]
    size = (2 * len(titles), 2.1 * len(images))
    figure, grid = plt.subplots(len(images), len(titles), figsize=size, layout="constrained")
    for row, image, label, fall in zip(grid, images, labels, falls, strict=True):
        row[0].imshow(image)
        row[0].set_ylabel(label)
        most = fall.abs().max()  # a scale for each picture
        for axes, effect in zip(row[1:], fall, strict=True):
            axes.imshow(effect.reshape(side, side), cmap="RdBu_r", vmin=-most, vmax=most)
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="local/shapes-vit-mini")
    parser.add_argument("--local", action="store_true", help="load the weights here, without a server")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    options = parser.parse_args()
    CONFIG.APP.REMOTE_LOGGING = sys.stdout.isatty()
    weights = {"dispatch": True} if options.local else {}
    model = TransformersModel(options.model, task="image-classification", **weights)

    images = pictures()
    labels, falls = needed(model, images, not options.local)
    for label, fall in zip(labels, falls, strict=True):
        sites = ", ".join(f"{value:.1f}" for value in fall.max(dim=-1).values)
        print(f"a {label}; the most that one patch matters, from the embedding up: {sites}")
    picture = options.out / "vision_patches.png"
    draw(images, labels, falls, picture)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
