"""Pair Customization on a real pipeline of Stable Diffusion's class: `INTERLACE_SD=REPO pytest -m gpu` runs it."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from interlace.methods import find
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared import images as _images
from interlace.methods.shared.denoising import lora
from interlace.methods.shared.images import Images

REPO = os.environ.get("INTERLACE_SD", "")


@pytest.mark.gpu
@pytest.mark.skipif(not REPO, reason="INTERLACE_SD names no pipeline, such as stabilityai/stable-diffusion-xl-base-1.0")
def test_a_style_is_learned_and_drawn(tmp_path: Path) -> None:
    """The second picture is the first in negative; a few updates draw it apart from the bare model."""
    from nnsight.modeling.diffusion import DiffusionModel

    model = DiffusionModel(REPO, dispatch=True, dtype=torch.bfloat16)
    model.pipeline.to("cuda")
    report = Notebook(tmp_path, seed=1, bar=False)
    draw: dict[str, Any] = {"prompts": ["a photo of a dog"], "steps": 20, "size": (512, 512)}
    bare = report.open(run(find("customize.generate"), model, draw, report).images).tensors["images"]
    images = _images.keep(report, Images.of_pixels(torch.cat([bare, 255 - bare]), "", "drawn by a model"))
    before = lora.digest(model.pipeline.unet)
    words = {"subject": "a photo of a sbu dog", "suffix": "in negative style"}
    sizes = {"content_steps": 10, "joint_steps": 60, "lr": 1e-4}
    learned = run(find("customize.pair"), model, {"images": images, **words, **sizes}, report)
    assert lora.digest(model.pipeline.unet) == before
    assert learned.metric("orth_max").value < 1e-6
    losses = [row[2] for row in learned.table("losses").rows if row[2] is not None]
    assert sum(losses[-15:]) < sum(losses[:15])

    def styled(strength: float) -> torch.Tensor:
        styles = [{"adapter": learned.style, "suffix": "in negative style", "strength": strength}]
        found = run(find("customize.generate"), model, {**draw, "styles": styles}, report)
        return report.open(found.images).tensors["images"]

    assert torch.equal(styled(0.0), bare)
    assert (styled(4.0).float() - bare.float()).abs().mean() > 5
