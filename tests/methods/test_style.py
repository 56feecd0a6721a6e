"""Promise: a style is learned from a few examples, the second loss keeps plain prompts plain, and the gate is kept."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import drawn_shapes
import pytest
import tiny_diffusion
import torch
from nnsight.modeling.diffusion import DiffusionModel
from torch import Tensor

from interlace.methods import find
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.denoising import diffusion, lora
from interlace.methods.shared.images import Images
from interlace.methods.style.spec import TARGETS, StyleParams, StyleResult, StyliseResult
from interlace.methods.style.train import NAME, Trainer, examples, styled
from interlace.protocol.errors import InvalidRequest

STYLE, STYLISE = find("customize.style"), find("images.stylise")
#: All parts of a run, and nothing learned.
SHORT: dict[str, Any] = {
    "steps": 3,
    "batch": 2,
    "sample_every": 2,
    "evaluation": {"prompts": ["a large red cross"], "n_per_prompt": 1, "steps": 2, "guidance": 3},
}


@pytest.fixture(scope="module")
def pipeline_model() -> Any:
    return DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)


def framed(n: int = 3) -> Images:
    return drawn_shapes.draw(n, 1, ("framed",), ("square", "ring")).images


def kept(notebook: Notebook, images: Images) -> str:
    return notebook.artifact("images", *images.pack())


def state(model: Any) -> Mapping[str, Tensor]:
    return {name: one.clone() for name, one in model.pipeline.unet.state_dict().items()}


def test_a_styles_prompt() -> None:
    assert styled("A dog. ", " in the style of sks art") == "A dog in the style of sks art"


def test_a_whole_run_leaves_the_model_as_it_was(pipeline_model: Any, tmp_path: Path) -> None:
    notebook, before = Notebook(tmp_path, bar=False, seed=3), state(pipeline_model)
    probe = notebook.artifact(*drawn_shapes.judge(n=8, steps=1))
    judged = {"judge": probe, "style": "framed", "plain_style": "plain", "contents": ["content/cross"]}
    asked = {"images": kept(notebook, framed()), **SHORT}
    asked["evaluation"] = {**SHORT["evaluation"], **judged}
    result = run(STYLE, pipeline_model, asked, notebook)
    assert isinstance(result, StyleResult)
    after = state(pipeline_model)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], one) for name, one in before.items())
    adapter = notebook.open(result.adapter, "diffusers-lora")
    assert result.matched * 2 == len(adapter.tensors)
    assert {one.shape[0] for name, one in adapter.tensors.items() if "lora_A" in name} == {1}
    assert max(float(one.abs().max()) for name, one in adapter.tensors.items() if "lora_B" in name) > 0
    assert all(name.startswith("unet.up_blocks.") for name in adapter.tensors)
    assert any("conv1" in name for name in adapter.tensors)
    assert any("upsamplers" in name for name in adapter.tensors)
    assert [row[0] for row in result.table("history").rows] == [1, 2, 3]
    splits = {one.split for one in result.metrics if one.name == "style"}
    assert splits == {"style prompt", "plain prompt", "base, style prompt", "base, plain prompt"}
    assert result.metric("leakage").value == result.metric("style", "plain prompt").value
    assert result.metric("preserve_mse", "before").value == 0
    assert result.pictures[0].title == "while it trained"
    assert result.plot() is not None


def test_the_second_loss_keeps_plain_prompts_plain(pipeline_model: Any, tmp_path: Path) -> None:
    """The same draws with and without it: with it, plain predictions move less; without it, the style is learned."""
    moved: dict[float, float] = {}
    style: dict[float, tuple[float, float]] = {}
    for lambda_ in (0.0, 50.0):
        notebook = Notebook(tmp_path / str(lambda_), bar=False)
        params = StyleParams(images="-", crop=1, batch=8, lr=1e-2, preserve_lambda=lambda_)
        with (
            diffusion.opened(pipeline_model, notebook) as pipeline,
            lora.attached(pipeline.unet, {NAME: lora.Wish(1, None, TARGETS["all_up"])}) as layers,
        ):
            trainer = Trainer(pipeline, layers, examples(pipeline, framed(), params), params, 0)
            first = trainer.held(notebook)
            for _ in range(8):
                trainer.step()
            last = trainer.held(notebook)
        assert first[1] == 0
        moved[lambda_], style[lambda_] = last[1], (first[0], last[0])
    assert style[0.0][1] < 0.8 * style[0.0][0]
    assert moved[50.0] < 0.2 * moved[0.0]


def test_it_goes_on_where_it_stood(pipeline_model: Any, tmp_path: Path) -> None:
    """Three steps are the same three, whether there was a break after the second or not."""
    notebook = Notebook(tmp_path, bar=False)
    params = StyleParams(images="-", batch=2, lr=1e-2)
    found: list[Any] = []
    middle: Any = None
    with diffusion.opened(pipeline_model, notebook) as pipeline:
        for breaks in (False, True):
            with lora.attached(pipeline.unet, {NAME: lora.Wish(1, None, TARGETS["all_up"])}) as layers:
                trainer = Trainer(pipeline, layers, examples(pipeline, framed(), params), params, 0)
                if breaks:
                    trainer.resume(*middle)
                else:
                    trainer.step()
                    trainer.step()
                    tensors, said = trainer.state()
                    middle = {name: one.clone() for name, one in tensors.items()}, said["done"]
                losses = trainer.step()
                found.append((losses, layers.tensors(NAME)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[1][1][name], one) for name, one in found[0][1].items())


def test_the_gate(pipeline_model: Any, tmp_path: Path) -> None:
    """Over its t the adapter is off, so that a gate under every step is the bare model, to the bit."""
    notebook = Notebook(tmp_path, bar=False)
    with (
        diffusion.opened(pipeline_model, notebook) as pipeline,
        lora.attached(pipeline.unet, {NAME: lora.Wish(2, None, TARGETS["attention"])}) as layers,
    ):
        for one in layers.parameters(NAME).values():
            torch.nn.init.normal_(one, std=0.3)
        adapter = notebook.artifact("diffusers-lora", layers.tensors(NAME), layers.config(NAME, {}))
    given = drawn_shapes.draw(2, 5).images
    asked = {"images": kept(notebook, given), "steps": 10, "guidance": 1, "start_t": 800}

    def redrawn(**more: Any) -> tuple[Any, Tensor]:
        result = run(STYLISE, pipeline_model, {**asked, **more}, notebook)
        assert isinstance(result, StyliseResult)
        return result, Images.of(notebook.open(result.artifacts[0])).pixels

    bare, plain = redrawn()
    never, closed = redrawn(adapter=adapter, gate_t=0)
    half, some = redrawn(adapter=adapter, gate_t=400)
    always, whole = redrawn(adapter=adapter, gate_t=-1)
    assert [(one.steps_on, one.steps_run) for one in (bare, never, half, always)] == [(0, 8), (0, 8), (4, 8), (8, 8)]
    assert torch.equal(closed, plain)
    assert not torch.equal(some, plain)
    assert not torch.equal(whole, some)
    # The less is noised, the nearer the picture stays.
    near, _ = redrawn(start_t=200)
    assert near.metric("distance").value < bare.metric("distance").value
    with pytest.raises(InvalidRequest, match="the last of 10 steps is at t"):
        redrawn(start_t=1)
    assert Images.of(notebook.open(bare.artifacts[0])).rights == f"made from: {drawn_shapes.RIGHTS}"


def test_the_layout_of_sdxl(tmp_path: Path) -> None:
    """Its conditions and its scheduler, which begins in the middle here; nothing of it stays behind."""
    model, notebook = (
        DiffusionModel(str(tiny_diffusion.xl(tmp_path / "xl")), dispatch=True),
        Notebook(tmp_path, bar=False),
    )
    before, images = state(model), kept(notebook, framed(2))
    asked = {"images": images, "steps": 1, "batch": 1, "evaluation": {"n_per_prompt": 0}}
    learned = run(STYLE, model, asked, notebook)
    assert isinstance(learned, StyleResult)
    assert learned.metric("style_loss", "after").n == 64, "draws of noise"
    assert learned.metric("preserve_mse", "before").value == 0 < learned.metric("preserve_mse", "after").value
    redraw = {"images": images, "steps": 4, "guidance": 3.0}
    one, other = (
        run(STYLISE, model, {**redraw, **more}, notebook) for more in ({}, {"adapter": learned.adapter, "scale": 9})
    )
    assert isinstance(one, StyliseResult)
    assert (one.steps_on, other.steps_on, other.steps_run) == (0, 3, 3)  # type: ignore[attr-defined]
    pixels = [Images.of(notebook.open(of.artifacts[0])).pixels for of in (one, other)]
    assert not torch.equal(*pixels)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"evaluation": {"judge": "x"}}, "name the judge's class that is the style"),
        ({"evaluation": {"prompts": ["a"], "contents": ["b", "c"]}}, "2 contents for 1 prompts"),
        ({"steps": 6000}, "less than or equal to 5000"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        StyleParams(images="-", **changes)


def test_what_the_judge_cannot_say_is_known_before_a_step(pipeline_model: Any, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, bar=False)
    probe, images = notebook.artifact(*drawn_shapes.judge(n=8, steps=1)), kept(notebook, framed())
    for more in ({"style": "dada"}, {"style": "framed", "plain_style": "dada"}):
        evaluation = {**SHORT["evaluation"], "judge": probe, **more}
        with pytest.raises(InvalidRequest, match="'dada' is no class of the classifier"):
            run(STYLE, pipeline_model, {"images": images, **SHORT, "evaluation": evaluation}, notebook)
    asked = {"images": images, "judge": probe, "style": "framed"}
    with pytest.raises(InvalidRequest, match="'dada' is no class of the classifier"):
        run(STYLISE, pipeline_model, {**asked, "contents": ["dada", "cross", "cross"]}, notebook)
    with pytest.raises(InvalidRequest, match="`contents` has 1 for 3 images; give one for each"):
        run(STYLISE, pipeline_model, {**asked, "contents": ["content/cross"]}, notebook)
    assert notebook.cost["forwards"] == 0


@pytest.mark.gpu
def test_on_a_stable_diffusion(tmp_path: Path) -> None:
    """The published settings on a pipeline of full size, whose folder or repo id is in INTERLACE_SD."""
    source = os.environ.get("INTERLACE_SD")
    if not source or not torch.cuda.is_available():
        pytest.skip("INTERLACE_SD names no pipeline (its repo id or folder), or there is no GPU")
    model = DiffusionModel(source, dispatch=True, dtype=torch.float32)
    model.pipeline.to("cuda")
    notebook = Notebook(tmp_path, bar=True)
    images = drawn_shapes.draw(4, 1, ("framed",)).images.resized(512)
    asked = {"images": kept(notebook, images), "steps": 20, "evaluation": {"n_per_prompt": 1, "steps": 10}}
    result = run(STYLE, model, asked, notebook)
    assert result.metric("style_loss", "after").value < result.metric("style_loss", "before").value
