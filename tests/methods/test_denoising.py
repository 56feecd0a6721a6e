"""What methods share of diffusion: that a pipeline draws here what it draws by itself, whatever its scheduler."""

from pathlib import Path
from typing import Any

import diffusers
import drawn_shapes
import pytest
import tiny_diffusion
import torch
from nnsight.modeling.diffusion import DiffusionModel

from interlace.methods.filtering.criteria import ByDenoiser
from interlace.methods.filtering.spec import Denoiser
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


def test_no_prompt_of_sdxl_is_nothing_in_a_filters_score_too(tmp_path: Path) -> None:
    """Not an empty text: SDXL was made to be told zeros there."""
    notebook = Notebook(tmp_path, bar=False)
    with diffusion.opened(DiffusionModel(str(tiny_diffusion.xl(tmp_path / "xl")), dispatch=True), notebook) as pipeline:
        told: list[torch.Tensor] = []
        pipeline.unet.register_forward_pre_hook(
            lambda _unet, _args, more: told.append(more["encoder_hidden_states"]), with_kwargs=True
        )
        by = ByDenoiser(pipeline, Denoiser(levels=(0.5,), draws=1), ["a"], 1)
        by.scores(drawn_shapes.draw(1, 1).images.resized(32), notebook)
    assert [bool(one.any()) for one in told] == [False, True]


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
