"""Train shapes-vit-mini from random weights, on shapes that it draws: ``python make_shapes_vit.py FOLDER [STEPS]``.

A minute of one core. A checkpoint with fewer steps is the same kind of model, not the same bytes.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

LABELS = ("circle", "square", "triangle")
SIDE, PATCH = 24, 4  # pixels
_SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}


def draw(label: int, random: np.random.Generator) -> Image.Image:
    """A filled shape of some colour and size, somewhere on a noisy ground."""
    ground = random.integers(0, 110, 3)
    noise = random.integers(-15, 16, (SIDE, SIDE, 3))
    image = Image.fromarray(np.clip(ground + noise, 0, 255).astype(np.uint8))
    radius = random.uniform(4.5, 7.5)
    x, y = random.uniform(radius + 1, SIDE - radius - 1, 2)
    colour = tuple(int(value) for value in random.integers(140, 256, 3))
    pen = ImageDraw.Draw(image)
    if LABELS[label] == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    elif LABELS[label] == "square":
        half = radius * 0.88
        pen.rectangle((x - half, y - half, x + half, y + half), colour)
    else:
        pen.polygon([(x, y - radius), (x - radius, y + radius * 0.8), (x + radius, y + radius * 0.8)], colour)
    return image


def main(folder: Path, steps: int = 1600) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: number for number, label in enumerate(LABELS)}}
    model = ViTForImageClassification(ViTConfig(**_SHAPE, **names, image_size=SIDE, patch_size=PATCH))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = random.integers(0, len(LABELS), size)
        images = [draw(int(label), random) for label in labels]
        return processor(images, return_tensors="pt")["pixel_values"], torch.from_numpy(labels)

    for step in range(steps):
        pixels, labels = batch(48)
        loss = torch.nn.functional.cross_entropy(model(pixels).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(step, round(loss.item(), 4), flush=True)
    with torch.no_grad():
        pixels, labels = batch(1000)
        right = (model.eval()(pixels).logits.argmax(-1) == labels).float().mean().item()
    print(f"right on 1000 new pictures: {right:.3f}")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
