"""Promise: candidates are ranked by what unlearning does to them, and a plain loss and pixels stand beside it."""

from pathlib import Path
from typing import Any

import drawn_shapes
import pytest
import tiny_diffusion
import torch
from nnsight.modeling.diffusion import DiffusionModel

from interlace.methods import find
from interlace.methods.attribution.scores import auc, average_precision, overlap, top
from interlace.methods.attribution.spec import AttributeParams, AttributeResult
from interlace.methods.attribution.unlearn import Pictures, moved
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.denoising import diffusion
from interlace.methods.shared.denoising.diffusion import Prompts
from interlace.methods.shared.images import Images
from interlace.protocol.errors import InvalidRequest

ATTRIBUTE = find("attribute.images")
SHORT: dict[str, Any] = {"query_draws": 8, "fisher_draws": 1, "times": 2, "batch": 8, "top": 2}


@pytest.fixture(scope="module")
def pipeline_model() -> Any:
    return DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)


def kept(notebook: Notebook, images: Images) -> str:
    return notebook.artifact("images", *images.pack())


def test_scores_of_rankings() -> None:
    scores = torch.tensor([0.1, 0.9, 0.5, 0.5])
    assert top(scores, 3) == [1, 2, 3]
    assert average_precision(scores, [1, 3]) == pytest.approx((1 + 2 / 3) / 2)
    assert auc(scores, [2], [0, 1, 3]) == pytest.approx((1 + 0 + 0.5) / 3)
    assert overlap([[1, 2], [2, 3], [1, 2]]) == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert overlap([[1, 2]]) is None


def test_fisher_is_the_mean_square_of_one_gradient_each(pipeline_model: Any, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, bar=False)
    params = AttributeParams(queries="-", candidates="-", **{**SHORT, "fisher_draws": 2, "batch": 3})
    drawn = drawn_shapes.draw(3, 1)
    with diffusion.opened(pipeline_model, notebook) as pipeline, moved(pipeline, params) as weights:
        held = Pictures(pipeline.encode_images(drawn.pixels).mean, pipeline.encode_prompts(drawn.captions))
        found = weights.fisher(held)
        wanted = {path: torch.zeros_like(one) for path, one in found.items()}
        dice = torch.Generator().manual_seed(notebook.seed)
        for _ in range(2):
            t = torch.randint(pipeline.timesteps, (3,), generator=dice)
            noise = torch.randn(held.latents.shape, generator=dice)
            for row in range(3):
                one = slice(row, row + 1)
                noisy = pipeline.noised(held.latents[one], noise[one], t[one])
                said = pipeline.predict(noisy, t[one], held.prompts[one], backward=True)
                (said - pipeline.target(held.latents[one], noise[one], t[one])).square().mean().backward()
                for path, layer in weights.layers.items():
                    wanted[path] += layer.weight.grad.square() / 6
                    layer.weight.grad = None
    for path, one in found.items():
        torch.testing.assert_close(one, wanted[path], rtol=1e-3, atol=1e-9)


def test_the_layout_of_sdxl(tmp_path: Path) -> None:
    model, notebook = (
        DiffusionModel(str(tiny_diffusion.xl(tmp_path / "xl")), dispatch=True),
        Notebook(tmp_path, bar=False),
    )
    before = {name: one.clone() for name, one in model.pipeline.unet.state_dict().items()}
    some = kept(notebook, drawn_shapes.draw(3, 1).images)
    found = run(ATTRIBUTE, model, {"queries": some, "candidates": some, "alpha": 1e-4, **SHORT}, notebook)
    assert found.metric("weights_moved").value > 0
    assert {"loss_rank", "pixel_rank"} <= set(found.table("ranked").columns)
    assert all(torch.equal(one, before[name]) for name, one in model.pipeline.unet.state_dict().items())


class Told:
    """A denoiser that says W c of a prompt c, whatever the noise: losses and gradients are known without it."""

    timesteps = 10

    def __init__(self, weight: torch.Tensor, notebook: Notebook) -> None:
        self.report = notebook
        self.says = torch.nn.Linear(*weight.shape[::-1], bias=False)
        self.says.weight.data.copy_(weight)
        self.unet = torch.nn.ModuleDict(
            {"block": torch.nn.ModuleDict({"attn2": torch.nn.ModuleDict({"to_k": self.says})})}
        )

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return latents + noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return latents

    def predict(
        self, noisy: torch.Tensor, t: torch.Tensor, prompts: Prompts, *, backward: bool = False
    ) -> torch.Tensor:
        with torch.set_grad_enabled(backward):
            said: torch.Tensor = self.says(prompts.states).sum(1)
        return said[:, :, None, None]


def test_a_score_is_the_published_formula(tmp_path: Path) -> None:
    """Eq. 5 and 6 by hand, where the answer is known: the one that says what the query says gets harder, the one that
    says the opposite easier, one of another prompt is not moved at all; and what many have taught is held by F."""
    prompts = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [1, 0]])
    off = torch.tensor([[1.0, 1], [-1, -1], [1, 0], [0, 1], [1, 1], [-2, 0], [3, 0]])  # W c - z
    names = ("same", "opposite", "first", "second", "elsewhere", "there", "busy")
    weight = torch.tensor([[0.5, -1], [2, 0.25]])
    asked, alpha, damping = torch.tensor([1.0, 1.0]), 0.01, 0.1
    params = AttributeParams(queries="-", candidates="-", alpha=alpha, damping=damping, **SHORT)

    def pictures(prompts: torch.Tensor, off: torch.Tensor) -> Pictures:
        return Pictures((prompts @ weight.T - off)[:, :, None, None], Prompts(prompts[:, None]))

    with moved(Told(weight, Notebook(tmp_path, bar=False)), params) as weights:  # type: ignore[arg-type]
        held, query = pictures(prompts, off), pictures(prompts[:1], asked[None])
        before, fisher = weights.losses(held), weights.fisher(held)
        weights.step(query, 0, fisher, len(held), torch.Generator().manual_seed(0))
        scores = weights.losses(held) - before
    gradients = torch.einsum("no,ni->noi", off, prompts)  # L = |W c - z|^2 / 2, for two numbers
    information = gradients.square().mean(0)
    torch.testing.assert_close(next(iter(fisher.values())), information)
    change = torch.outer(asked, prompts[0]) / (information + damping * information.mean()) * alpha / len(off)
    after = (off + prompts @ change.T).square().mean(1)
    torch.testing.assert_close(scores, after - off.square().mean(1), rtol=1e-4, atol=1e-7)
    by_name = dict(zip(names, scores.tolist(), strict=True))
    assert by_name["elsewhere"] == by_name["there"] == 0
    assert by_name["opposite"] < 0 < by_name["first"] < by_name["second"] < by_name["same"]
    assert float(change[0, 0]) < float(change[1, 0]) / 2, "what `busy` has taught is not held"


def test_its_like_are_forgotten_with_a_query(pipeline_model: Any, tmp_path: Path) -> None:
    """To forget a red square makes red squares harder to draw, and not blue rings."""
    notebook = Notebook(tmp_path, bar=False)
    squares = drawn_shapes.draw(5, 3, shapes=("square",), colours=("red",)).images
    rings = drawn_shapes.draw(4, 4, shapes=("ring",), colours=("blue",)).images
    both = Images.of_pixels(
        torch.cat([squares.pixels[:4], rings.pixels]), [*squares.captions[:4], *rings.captions], "drawn"
    )
    before = {name: one.clone() for name, one in pipeline_model.pipeline.unet.state_dict().items()}
    asked = {
        "queries": kept(notebook, squares.some([4])),
        "candidates": kept(notebook, both),
        "controls": kept(notebook, rings.some([0])),
        "known": [0, 1],
        "members": [4, 5],
        **SHORT,
        "query_draws": 32,
        "alpha": 1e-4,
        "batch": 16,
    }
    result = run(ATTRIBUTE, pipeline_model, asked, notebook)
    assert isinstance(result, AttributeResult)
    scores = notebook.open(result.artifacts[0]).tensors
    query, control = scores["scores"]
    assert query[:4].mean() > query[4:].mean()
    assert control[4:].mean() > control[:4].mean()
    after = pipeline_model.pipeline.unet.state_dict()
    assert all(torch.equal(after[name], one) for name, one in before.items())
    assert not any(one.grad is not None for one in pipeline_model.pipeline.unet.parameters())
    # The baselines and the control are there, always.
    splits = {one.split for one in result.metrics if one.name == "average_precision"}
    assert splits == {"unlearning", "loss", "pixels", "controls", "chance"}
    assert {one.split for one in result.metrics if one.name == "auc"} == splits - {"chance"}
    assert scores["scores"].shape == scores["pixels"].shape == (2, 8)
    assert scores["loss"].shape == (8,)
    assert [row[:2] for row in result.table("ranked").rows] == [(0, 1), (0, 2)]
    assert "no proof" in result.warnings[0]
    assert result.plot() is not None


def test_what_does_not_go(pipeline_model: Any, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, bar=False)
    ref = kept(notebook, drawn_shapes.draw(2, 1).images)
    with pytest.raises(InvalidRequest, match="candidate 2; there are 2, from 0 on"):
        run(ATTRIBUTE, pipeline_model, {"queries": ref, "candidates": ref, "known": [2]}, notebook)
    with pytest.raises(ValueError, match="is in known and in members"):
        AttributeParams(queries="a", candidates="b", known=(1,), members=(1,))
