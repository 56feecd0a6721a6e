"""What methods share of diffusion: that a pipeline draws here what it draws by itself, whatever its scheduler."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_diffusion
import torch
from nnsight.modeling.diffusion import DiffusionModel

from interlace.methods.notebook import Notebook
from interlace.methods.shared.denoising import diffusion

PROMPT = "a large red triangle"
#: Of Stable Diffusion, for the shapes pipeline.
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.fixture
def model() -> Any:
    model = DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)
    model.pipeline.set_progress_bar_config(disable=True)
    return model


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_noise_on_the_way_is_the_pipelines_own(model: Any, scheduler: str, tmp_path: Path) -> None:
    """Not the noise that the picture began with, and not that of who shares its pass."""
    model.pipeline.scheduler = getattr(diffusers, scheduler)(prediction_type="v_prediction", **SCHEDULE)
    with diffusion.opened(model, Notebook(tmp_path, bar=False)) as pipeline:
        alone = pipeline.draw([PROMPT], seeds=[5], steps=4, guidance=3.0)
        both = pipeline.draw([PROMPT, PROMPT], seeds=[4, 5], steps=4, guidance=3.0)
    with model.generate(PROMPT, num_inference_steps=4, guidance_scale=3.0, seed=5):
        images = model.output.images.save()
    own = torch.frombuffer(bytearray(images[0].tobytes()), dtype=torch.uint8).view_as(alone[0])
    assert torch.equal(alone[0], own)
    assert torch.equal(both[1], own)
