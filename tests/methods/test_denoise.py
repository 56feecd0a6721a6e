"""`denoise.strip`: the last picture is the pipeline's own, the first is noise, and nothing stays behind."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_diffusion
import torch
from nnsight.modeling.diffusion import DiffusionModel
from PIL import Image

from interlace.methods import find
from interlace.methods.denoise.spec import Shot, StripResult
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.denoising.lora import Wish, attached
from interlace.protocol.errors import InvalidRequest

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
    with pytest.raises(InvalidRequest, match="`weights` are those of an `adapter`"):
        strip(pipeline, tmp_path, weights=[0.5])


def test_what_it_refuses(pipeline: Any, local: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"`params.show` has 9; the run has 6 steps"):
        strip(pipeline, tmp_path, show=[9])
    with pytest.raises(InvalidRequest, match="needs a pipeline with a `unet`"):
        strip(local, tmp_path)
