"""The code that people copy to watch a picture come out of noise, where a scheduler asks more often than it has steps.

Run here on the pipeline with its weights, as `remote=False`: what a server answers is tested in the journeys.
"""

import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_diffusion
import torch
from nnsight.modeling.diffusion import DiffusionModel

from interlace.protocol.model import ModelKey
from interlace_server.page.tools import TOOLS
from interlace_state.models import ModelCard

EXAMPLE = Path(__file__).parents[2] / "examples" / "denoising.py"
STEPS = 3
SETTINGS = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "seed": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shapes pipeline with Stable Diffusion's own scheduler, PNDM."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(tiny_diffusion.ASSET)
    pipeline.scheduler = tiny_diffusion.pndm()
    pipeline.save_pretrained(made := tmp_path_factory.mktemp("pndm"))
    return made


def of_the_pipeline(folder: Path, prompt: str) -> tuple[list[torch.Tensor], Any]:
    """The latents that the denoiser is given, with those that it leaves, and the picture: of diffusers alone."""
    pipeline = DiffusionModel(str(folder), dispatch=True).pipeline
    seen: list[torch.Tensor] = []
    pipeline.unet.register_forward_pre_hook(lambda module, given: seen.append(given[0][:1]))
    how = {"num_inference_steps": STEPS, "guidance_scale": 3.0}
    latents = pipeline(prompt, **how, generator=torch.Generator().manual_seed(0), output_type="latent").images
    with torch.no_grad():
        picture = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample[0]
    return [*seen, latents], picture


def test_the_pages_code_has_every_pass(folder: Path, tmp_path: Path) -> None:
    card = ModelCard(key=ModelKey(repo_id="local/pndm"), commit="0" * 40, dtype="float32", config={})
    asked = {"prompt": "a large red triangle", "steps": STEPS, "guidance": 3.0}
    code = TOOLS["denoise"].trace(card, asked, 0)
    assert code is not None
    code = code.replace('"local/pndm"', f"{str(folder)!r}, dispatch=True").replace("remote=True", "remote=False")
    file = tmp_path / "copied.py"
    file.write_text(code.replace("= URL", '= "http://127.0.0.1:9"'))
    pictures = runpy.run_path(str(file))["pictures"]
    latents, last = of_the_pipeline(folder, str(asked["prompt"]))
    assert len(pictures) == len(latents) == STEPS + 2
    torch.testing.assert_close(pictures[-1], (last / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


def test_the_example_tells_the_denoiser_at_every_pass(folder: Path, example: ModuleType) -> None:
    model = DiffusionModel(str(folder), dispatch=True)
    strip = example.strip(model, example.RED, SETTINGS, False)
    _, last = of_the_pipeline(folder, example.RED)
    assert len(strip) == STEPS + 2
    torch.testing.assert_close(strip[-1], last, atol=1e-4, rtol=0)
    pictures = example.switched(model, SETTINGS, False)
    assert len(pictures) == STEPS + 2
    _, blue = of_the_pipeline(folder, example.BLUE)
    told = torch.from_numpy(pictures[-1]).permute(2, 0, 1)  # told BLUE from the first pass on
    torch.testing.assert_close(told, (blue / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


@pytest.fixture
def example() -> ModuleType:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("denoising", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
