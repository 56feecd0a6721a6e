"""Pair Customization: what is trained and what is not, and that style guidance is the equation, here and in a trace."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawn_shapes
import pytest
import tiny_diffusion
import torch
from nnsight.modeling.diffusion import DiffusionModel

from interlace.methods import find
from interlace.methods.base import Checkpoint, ModelFacts
from interlace.methods.notebook import Notebook, run
from interlace.methods.pair.run import edge_correlation
from interlace.methods.pair.spec import GenerateParams, PairParams, PairResult, estimate, estimate_generate
from interlace.methods.shared import images as _images
from interlace.methods.shared.denoising import lora
from interlace.methods.shared.images import Images
from interlace.protocol.errors import AdapterRefused, InvalidArtifact, InvalidRequest

PROMPT, SUFFIX = "a large green circle", "in vex style"
SHORT: dict[str, Any] = {
    "subject": "a large red sks square",
    "suffix": SUFFIX,
    "content_rank": 4,
    "style_rank": 6,
    "content_steps": 2,
    "joint_steps": 4,
    "batch": 2,
    "grad_accum": 1,
    "lr": 5e-3,
}
DRAW: dict[str, Any] = {"prompts": [PROMPT], "guidance": 3.0, "steps": 4}


def pipeline() -> Any:
    model = DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)
    model.pipeline.set_progress_bar_config(disable=True)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return pipeline()


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Notebook:
    return Notebook(tmp_path_factory.mktemp("artifacts"), seed=5, bar=False)


def kept(report: Notebook, pixels: torch.Tensor) -> str:
    return _images.keep(report, Images.of_pixels(pixels, "", "our own"))


def train(model: Any, report: Notebook, style: str = "edged", **more: Any) -> PairResult:
    images = kept(report, drawn_shapes.pair("square", "red", style))
    found = run(find("customize.pair"), model, {"images": images, **SHORT, **more}, report)
    assert isinstance(found, PairResult)
    return found


def draw(model: Any, report: Notebook, *styles: Mapping[str, Any], **more: Any) -> torch.Tensor:
    """uint8 [n, 32, 32, 3]"""
    wishes = [{"suffix": SUFFIX, "start": 0.0, **one} for one in styles]
    result = run(find("customize.generate"), model, {**DRAW, "styles": wishes, **more}, report)
    return report.open(result.images, "images").tensors["images"]


@pytest.fixture(scope="module")
def trained(model: Any, notebook: Notebook) -> PairResult:
    return train(model, notebook, samples={"prompts": [PROMPT], "every": 3, "steps": 2})


def test_what_is_trained(model: Any, notebook: Notebook, trained: PairResult) -> None:
    """B alone; A's rows are disjoint rows of one orthonormal basis, shared by layers of a width."""
    content, style = (notebook.open(name, "diffusers-lora") for name in (trained.content, trained.style))
    assert content.tensors.keys() == style.tensors.keys()
    bases = {}
    for key, down in content.tensors.items():
        if ".lora_A." not in key:
            continue
        rows = torch.cat([down, style.tensors[key]]).double()
        assert rows.shape[0] == 10
        torch.testing.assert_close(rows @ rows.T, torch.eye(10, dtype=torch.float64), atol=1e-6, rtol=0)
        assert torch.equal(bases.setdefault(rows.shape[1], rows), rows)
        for one in (content, style):
            assert one.tensors[key.replace("lora_A", "lora_B")].any(), key
    assert len(bases) == 3
    assert trained.metric("orth_max").value < 1e-6
    assert abs(trained.metric("update_cosine").value) < 1e-6
    rows = trained.table("losses").rows
    assert [row[2] is None for row in rows] == [True, True, False, False, False, False]
    assert all(row[1] for row in rows)
    assert style.config[lora.OURS]["base_sha256"] == lora.digest(model.pipeline.unet)
    assert len(notebook.open(trained.pictures).tensors["images"]) == 2  # after updates 3 and 6


def test_the_model_is_left_as_it_was(notebook: Notebook) -> None:
    model, fresh = pipeline(), pipeline()
    wanted = [one.requires_grad for one in model._module.parameters()]
    result = train(model, notebook)
    draw(model, notebook, {"adapter": result.style})
    assert lora.digest(model.pipeline.unet) == lora.digest(fresh.pipeline.unet)
    assert [name for name, _ in model._module.named_modules()] == [name for name, _ in fresh._module.named_modules()]
    assert [one.requires_grad for one in model._module.parameters()] == wanted
    assert not hasattr(model.pipeline.unet, "peft_config")


def test_the_style_leaves_the_content_alone(model: Any, notebook: Notebook) -> None:
    """The gradient of the second loss stops before the content LoRA: when it comes in, changes nothing of that."""
    early = train(model, notebook, content_steps=1, joint_steps=5)
    late = train(model, notebook, content_steps=5, joint_steps=1)
    one, other = (notebook.open(result.content).tensors for result in (early, late))
    assert all(torch.equal(one[key], other[key]) for key in one)
    one, other = (notebook.open(result.style).tensors for result in (early, late))
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_it_learns_the_second_picture(model: Any, notebook: Notebook) -> None:
    result = train(model, notebook, content_steps=0, joint_steps=20, lr=1e-2, joint=False)
    losses = [row[2] for row in result.table("losses").rows]
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])


def test_a_style_of_no_strength_is_the_model_itself(model: Any, notebook: Notebook, trained: PairResult) -> None:
    bare = draw(model, notebook)
    style = {"adapter": trained.style}
    assert torch.equal(draw(model, notebook, style | {"strength": 0.0}), bare)
    assert torch.equal(draw(model, notebook, style | {"strength": 4.0, "start": 1.0}), bare)
    assert not torch.equal(draw(model, notebook, style | {"strength": 4.0}), bare)
    with model.generate(PROMPT, num_inference_steps=4, guidance_scale=3.0, seed=5, output_type="np"):
        images = model.output.images.save()
    assert torch.equal((torch.tensor(images) * 255).round().to(torch.uint8), bare)


def test_the_schedule_and_what_each_term_did(model: Any, notebook: Notebook, trained: PairResult) -> None:
    wish = {"adapter": trained.style, "suffix": SUFFIX, "strength": 2.0, "start": 0.5, "end": 0.75}
    params = {**DRAW, "prompts": [PROMPT, "a large blue ring"], "styles": [wish]}
    result = run(find("customize.generate"), model, params, notebook)
    table = result.table("terms")
    assert table.columns == ("step", "t", "prompt", "style_0")
    assert [row[3] > 0 for row in table.rows] == [False, False, True, False]
    assert [row[1] for row in table.rows] == sorted((row[1] for row in table.rows), reverse=True)
    assert result.denoiser_rows == 2 * (4 * 2 + 1)


def test_styles_are_blended(model: Any, notebook: Notebook, trained: PairResult) -> None:
    """Eq. 11: twice the same at 1 is once at 2; and two others are neither."""
    half = {"adapter": trained.style, "strength": 1.0}
    twice, once = draw(model, notebook, half, half), draw(model, notebook, half | {"strength": 2.0})
    torch.testing.assert_close(twice.float(), once.float(), atol=1, rtol=0)
    other = {"adapter": train(model, notebook, "grounded", joint_steps=6, lr=2e-2).style}
    strong = half | {"strength": 3.0}
    mixed = draw(model, notebook, strong, other | {"strength": 3.0})
    assert (mixed.float() - draw(model, notebook, strong).float()).abs().mean() > 1
    assert (mixed.float() - draw(model, notebook, other | {"strength": 3.0}).float()).abs().mean() > 1


@pytest.fixture
def loaded(trained: PairResult) -> Any:
    """A model into which diffusers itself has loaded the style."""
    model = pipeline()
    model.pipeline.load_lora_weights(trained.style, adapter_name="style")
    model._update(model._module)
    return model


def test_a_trace_draws_the_same(model: Any, loaded: Any, notebook: Notebook, trained: PairResult) -> None:
    """Equation 10 inside of a stock trace: the condition is moved so that the pipeline's own guidance makes it."""
    expected = draw(model, notebook, {"adapter": trained.style, "strength": 2.0})
    unet = loaded.pipeline.unet
    unet.set_adapters(["style"], [0.0])
    how = {"num_inference_steps": 4, "guidance_scale": 3.0, "seed": 5, "output_type": "np"}
    with loaded.session():
        with loaded.generate(f"{PROMPT} {SUFFIX}", num_inference_steps=1, guidance_scale=3.0):
            words = loaded.unet.inputs[1]["encoder_hidden_states"]
        with loaded.generate(PROMPT, **how) as run_:
            for _ in run_.iter[:4]:
                latents, t = loaded.unet.inputs[0]
                bare, told = loaded.unet.output[0].chunk(2)
                unet.set_adapters(["style"], [1.0])
                styled = loaded.unet(latents[1:], t, encoder_hidden_states=words[1:], return_dict=False)[0]
                unet.set_adapters(["style"], [0.0])
                loaded.unet.output = (torch.cat([bare, told + 2.0 / 3.0 * (styled - told)]),)
            images = loaded.output.images.save()
    torch.testing.assert_close(torch.tensor(images) * 255, expected.float(), atol=0.51, rtol=0)


def test_scaling_is_what_diffusers_does(model: Any, loaded: Any, notebook: Notebook, trained: PairResult) -> None:
    ours = draw(model, notebook, {"adapter": trained.style, "strength": 0.75}, how="lora_scale")
    loaded.pipeline.set_adapters(["style"], [0.75])
    how = {"num_inference_steps": 4, "guidance_scale": 3.0, "seed": 5, "output_type": "np"}
    with loaded.generate(f"{PROMPT} {SUFFIX}", **how):
        images = loaded.output.images.save()
    torch.testing.assert_close(torch.tensor(images) * 255, ours.float(), atol=0.51, rtol=0)


class Cut(Notebook):
    """Keeps the checkpoint of one update, and goes on from it."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__(folder, seed=5, bar=False)
        self._at, self.found = at, None

    def checkpoint(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        if step == self._at and self.found is None:
            self.found = Checkpoint(
                step, {name: one.clone() for name, one in tensors.items()}, copy.deepcopy(dict(state))
            )

    def resumed(self) -> Checkpoint | None:
        return self.found


@pytest.mark.parametrize("at", [1, 4])
def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(model: Any, at: int, tmp_path: Path) -> None:
    report = Cut(tmp_path, at)
    whole = train(model, report)
    assert report.found is not None
    again = train(model, report)
    assert again.table("losses") == whole.table("losses")
    for name in ("style", "content"):
        one, other = (report.open(getattr(result, name)).tensors for result in (whole, again))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_refused(model: Any, notebook: Notebook, trained: PairResult) -> None:
    with pytest.raises(InvalidRequest, match=r"ranks add up to 64, and .* reads 48 numbers"):
        train(model, notebook, content_rank=32, style_rank=32)
    three = kept(notebook, torch.zeros(3, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(InvalidRequest, match="holds 3 pictures; expected two"):
        run(find("customize.pair"), model, {"images": three, **SHORT}, notebook)
    odd = kept(notebook, torch.zeros(2, 30, 30, 3, dtype=torch.uint8))
    with pytest.raises(InvalidRequest, match="multiples of 8 pixels"):
        run(find("customize.pair"), model, {"images": odd, **SHORT}, notebook)
    style = notebook.open(trained.style)
    ours = {**style.config[lora.OURS], "base_sha256": "0" * 64}
    other = notebook.artifact("diffusers-lora", style.tensors, {**style.config, lora.OURS: ours})
    with pytest.raises(AdapterRefused, match="made for a denoiser with the weights 0000"):
        draw(model, notebook, {"adapter": other})
    less = {key: one for key, one in style.tensors.items() if "mid_block" not in key or "lora_A" in key}
    part = notebook.artifact("diffusers-lora", less, style.config)
    with pytest.raises(InvalidArtifact, match="does not fit this model: 8 tensors have no place"):
        draw(model, notebook, {"adapter": part})


def test_a_pair_that_is_none_is_said(model: Any, notebook: Notebook) -> None:
    noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    apart = torch.stack([drawn_shapes.render("ring", "red"), noise])
    assert edge_correlation(apart) < 0.3 < edge_correlation(drawn_shapes.pair("square", "red", "edged"))
    result = run(find("customize.pair"), model, {"images": kept(notebook, apart), **SHORT, "joint_steps": 1}, notebook)
    assert any("edges of the two pictures correlate" in one for one in result.warnings)


def test_the_layout_of_sdxl(tmp_path: Path) -> None:
    """Two text encoders, sizes among the conditions, another scheduler: random weights, two updates, two steps."""
    model = DiffusionModel(str(tiny_diffusion.xl(tmp_path / "xl")), dispatch=True)
    model.pipeline.set_progress_bar_config(disable=True)
    report = Notebook(tmp_path / "artifacts", seed=5, bar=False)
    result = train(model, report, content_steps=0, joint_steps=2)
    style = {"adapter": result.style, "strength": 3.0}
    bare = draw(model, report, size=(32, 32))
    assert draw(model, report, style, size=(32, 32)).shape == (1, 32, 32, 3)
    with model.generate(
        PROMPT, num_inference_steps=4, guidance_scale=3.0, seed=5, output_type="np", height=32, width=32
    ):
        images = model.output.images.save()
    torch.testing.assert_close(torch.tensor(images) * 255, bare.float(), atol=0.7, rtol=0)


def test_the_scheduler_of_stable_diffusion_1(trained: PairResult, notebook: Notebook) -> None:
    """PNDM asks the denoiser five times in four steps: the style is on in all of them, and the pixels are its own."""
    model = pipeline()
    model.pipeline.scheduler = tiny_diffusion.pndm()
    styles = [{"adapter": trained.style, "suffix": SUFFIX, "start": 0.0}]
    result = run(find("customize.generate"), model, {**DRAW, "styles": styles}, notebook)
    assert [row[0] for row in result.table("terms").rows] == [0, 1, 2, 3, 4]
    assert all(row[3] > 0 for row in result.table("terms").rows)
    with model.generate(PROMPT, num_inference_steps=4, guidance_scale=3.0, seed=5, output_type="np"):
        images = model.output.images.save()
    torch.testing.assert_close(torch.tensor(images) * 255, draw(model, notebook).float(), atol=0.7, rtol=0)


def test_the_estimate(trained: PairResult, tmp_path: Path, model: Any) -> None:
    facts = ModelFacts(2_900_000, 2, 96, 1000, latents=(8, 8, 8), widths=(48, 96), pixels=4, vae_width=16)
    report = Notebook(tmp_path, seed=5, bar=False)
    train(model, report)
    cost = estimate(PairParams(images="x", **SHORT), facts)
    assert {"forwards": cost.forwards, "backwards": cost.backwards, "tokens": cost.tokens} == report.cost
    large = estimate(PairParams(images="x", **{**SHORT, "batch": 8}), facts)
    assert large.peak_bytes > 2 * cost.peak_bytes
    before = dict(report.cost)
    draw(model, report, {"adapter": trained.style})
    params = GenerateParams(**DRAW, styles=[{"adapter": "x", "start": 0.0}])
    drawn = estimate_generate(params, facts)
    assert drawn.forwards == report.cost["forwards"] - before["forwards"]
    assert drawn.tokens == report.cost["tokens"] - before["tokens"]
    smaller = GenerateParams(**DRAW, styles=[{"adapter": "x", "start": 0.0}], size=(16, 16))
    assert estimate_generate(smaller, facts).tokens == drawn.tokens // 4
    looked = replace(facts, images={"x": (2, 64, 64)})
    large = estimate(PairParams(images="x", **SHORT), looked)
    assert large.tokens == 4 * cost.tokens
    assert large.peak_bytes > 2 * cost.peak_bytes
