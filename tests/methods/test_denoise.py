"""`denoise.strip`: the last picture is the pipeline's own, the first is noise, and nothing stays behind."""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_diffusion
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from nnsight.modeling.diffusion import DiffusionModel
from PIL import Image

from interlace.methods import find
from interlace.methods.denoise.run import _decoded
from interlace.methods.denoise.spec import Shot, StripResult
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.denoising.lora import Wish, attached
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

PROMPT = "a large red triangle"


@pytest.fixture(scope="module")
def pipeline() -> Any:
    model = DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)
    model.pipeline.set_progress_bar_config(disable=True)
    return model


def strip(model: Any, folder: Path, **params: Any) -> StripResult:
    report = Notebook(folder, seed=5, bar=False)
    result = run(find("denoise.strip"), model, {"prompt": PROMPT, "steps": 6, "guidance": 3.0} | params, report)
    assert isinstance(result, StripResult)
    return result


def image(picture: Shot) -> Image.Image:
    found = Image.open(io.BytesIO(picture.data))
    assert found.size == (picture.width, picture.height)
    return found


def test_from_noise_to_the_pipelines_own_picture(pipeline: Any, tmp_path: Path) -> None:
    hooks = len(pipeline.pipeline.unet._forward_pre_hooks)
    result = strip(pipeline, tmp_path)
    assert [one.step for one in result.pictures] == [0, 1, 2, 3, 4, 5, 6]
    with pipeline.generate(PROMPT, num_inference_steps=6, guidance_scale=3.0, seed=5):
        images = pipeline.output.images.save()
    assert image(result.pictures[-1]).tobytes() == images[0].tobytes()
    last = np.asarray(images[0], dtype=float)
    away = [float(np.abs(np.asarray(image(one), dtype=float) - last).mean()) for one in result.pictures]
    assert away[0] > 3 * away[-2] > 0
    rows = result.table("steps").rows
    assert [row[:2] for row in rows] == [(None, step) for step in (1, 2, 3, 4, 5, 6)]
    assert rows[0][2] > rows[-1][2]  # type: ignore[operator]
    assert len(pipeline.pipeline.unet._forward_pre_hooks) == hooks
    assert pipeline.pipeline._progress_bar_config == {"disable": True}


def test_a_scheduler_that_takes_a_step_twice(tmp_path: Path) -> None:
    model = DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)
    model.pipeline.set_progress_bar_config(disable=True)
    model.pipeline.scheduler = tiny_diffusion.pndm()
    result = strip(model, tmp_path, steps=3)
    assert [one.step for one in result.pictures] == [row[1] for row in [(0, 0), *result.table("steps").rows]]
    assert result.pictures[-1].title == "after 4 of 4 steps"
    with model.generate(PROMPT, num_inference_steps=3, guidance_scale=3.0, seed=5):
        images = model.output.images.save()
    assert image(result.pictures[-1]).tobytes() == images[0].tobytes()


def test_a_scheduler_that_scales_what_the_denoiser_reads(tmp_path: Path) -> None:
    """Euler's, which SDXL has: the first change is of the noise itself, and not of what is read of it."""
    model = DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)
    pipe = model.pipeline
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerDiscreteScheduler.from_config(tiny_diffusion.pndm().config)
    result = strip(model, tmp_path, steps=4)
    pipe.scheduler.set_timesteps(4)
    shape = (1, pipe.unet.config.in_channels, *(pipe.unet.config.sample_size,) * 2)
    seen = [torch.randn(shape, generator=torch.Generator().manual_seed(5)) * pipe.scheduler.init_noise_sigma]

    def keep(_pipe: Any, _step: int, _t: Any, kept: dict[str, Any]) -> dict[str, Any]:
        seen.append(kept["latents"].clone())
        return kept

    asked = {"num_inference_steps": 4, "guidance_scale": 3.0, "callback_on_step_end": keep}
    pipe(PROMPT, generator=torch.Generator().manual_seed(5), output_type="latent", **asked)
    changes = [float((now - before).norm() / before.norm()) for before, now in itertools.pairwise(seen)]
    assert [row[3] for row in result.table("steps").rows] == pytest.approx(changes, rel=1e-4)
    assert changes[0] < 2


def test_a_picture_of_sdxl_in_16_bits_is_the_pipelines_own(tmp_path: Path) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_diffusion.xl(tmp_path / "xl"), dtype=torch.float16)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae.config.force_upcast
    asked = {"num_inference_steps": 2, "guidance_scale": 3.0}
    seeded = torch.Generator().manual_seed
    latents = pipe("a", generator=seeded(5), output_type="latent", **asked).images
    for moments in ({}, {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [2.0, 3.0, 4.0, 5.0]}):
        pipe.vae.register_to_config(**moments)
        own = pipe("a", generator=seeded(5), **asked).images[0]
        assert _decoded(pipe, latents).tobytes() == own.tobytes()
        assert pipe.vae.dtype == torch.float16


def test_chosen_steps_smaller_pictures_and_a_drawing(pipeline: Any, tmp_path: Path) -> None:
    result = strip(pipeline, tmp_path, show=[6, 0], edge=16)
    assert [(one.step, one.width, one.height) for one in result.pictures] == [(0, 16, 16), (6, 16, 16)]
    assert [axis.get_xlabel() for axis in result.plot().axes] == ["0", "6"]


def test_a_style_at_several_weights(pipeline: Any, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, seed=5, bar=False)
    torch.manual_seed(1)
    with attached(pipeline.pipeline.unet, {"style": Wish(2)}) as layers:
        tensors = {key: torch.randn_like(one) * 0.3 for key, one in layers.tensors("style").items()}
        config = layers.config("style", {})
    adapter = notebook.artifact("diffusers-lora", tensors, config)
    params = {"prompt": PROMPT, "steps": 3, "guidance": 3.0, "show": [3]}
    result = run(find("denoise.strip"), pipeline, {**params, "adapter": adapter, "weights": [0.0, 0.5, 1.0]}, notebook)
    bare = run(find("denoise.strip"), pipeline, params, Notebook(tmp_path, seed=5, bar=False))
    assert [one.weight for one in result.pictures] == [0.0, 0.5, 1.0]
    assert result.pictures[0].png == bare.pictures[0].png
    away = [
        float(np.abs(np.asarray(image(one), dtype=float) - np.asarray(image(bare.pictures[0]), dtype=float)).mean())
        for one in result.pictures
    ]
    assert away[2] > away[1] > away[0] == 0
    assert result.pictures[2].title == "after 3 of 3 steps, style at 1"
    assert not hasattr(pipeline.pipeline.unet, "peft_config")
    strange = notebook.artifact("diffusers-lora", tensors, {**config, "interlace": {"base_sha256": "0" * 64}})
    with pytest.raises(InvalidArtifact, match="was made on other weights than this model's"):
        run(find("denoise.strip"), pipeline, {**params, "adapter": strange}, notebook)
    with pytest.raises(InvalidRequest, match="`weights` are those of an `adapter`"):
        strip(pipeline, tmp_path, weights=[0.5])


def test_what_it_refuses(pipeline: Any, local: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"`params.show` has 9; the run has 6 steps"):
        strip(pipeline, tmp_path, show=[9])
    with pytest.raises(InvalidRequest, match="needs a pipeline with a `unet`"):
        strip(local, tmp_path)
