"""`customize.style`: an adapter for a style from a few examples. `images.stylise`: pictures redrawn with one.

Hui Ren, Joanna Materzynska, Rohit Gandikota, David Bau, Antonio Torralba, "Opt-In Art: Learning Art Styles Only from
Few Examples", arXiv:2412.00176. "code" is github.com/rhfeiyang/Opt-In-Art at 771bd1b. Its noise comes from 31 seeds, by
a slip (2*15 for 2**15); here it comes from the job's seed.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec
from interlace.methods.shared.denoising.denoiser_cost import (
    bytes_backward,
    bytes_digest,
    bytes_forward,
    bytes_lora,
    images_in,
    peak,
    positions,
    square,
)
from interlace.methods.shared.pictures import Picture

_Prompt = Annotated[str, Field(min_length=1, max_length=4000)]
#: Whole module paths: the upsampling half, attention, convolutions and all, as the published network's modules.
ALL_UP = r"up_blocks\..*\.(to_q|to_k|to_v|to_out\.0|conv1|conv2|conv_shortcut|time_emb_proj|upsamplers\.\d+\.conv)"
#: Its attention alone.
ATTENTION_UP = r"up_blocks\..*\.(to_q|to_k|to_v|to_out\.0)"
#: Attention everywhere.
ATTENTION = r".*\.(to_q|to_k|to_v|to_out\.0)"
#: Draws of noise that the losses are measured on before and after.
HELD = 64
TARGETS = {"all_up": ALL_UP, "attention_up": ATTENTION_UP, "attention": ATTENTION}


class StyleEvaluation(Params):
    """What is drawn when training is over, by four: with and without the adapter, with and without the suffix."""

    prompts: tuple[_Prompt, ...] = ()
    """Plain prompts; none: the examples' captions. Better are others: they show whether the style carries over."""
    n_per_prompt: Annotated[int, Field(ge=0, le=64)] = 2
    """0: nothing is drawn."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance: Annotated[float, Field(ge=0, le=100)] = 5.0
    """Published: 5."""
    batch: Annotated[int, Field(ge=1, le=256)] = 8
    judge: ArtifactName | None = None
    """A classifier of kind `probe` (`image_classifier`, see the page of images), which says of each picture whether it
    has the style and shows the content. Without one there are no such metrics."""
    style: Annotated[str, Field(max_length=200)] = ""
    """The judge's class that is the style: `HEAD/NAME`, or a name of one head."""
    plain_style: Annotated[str, Field(max_length=200)] = ""
    """Its class that plain pictures have."""
    contents: tuple[Annotated[str, Field(max_length=200)], ...] = ()
    """Its class that each of `prompts` should show, in their order."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.judge is not None and not self.style:
            raise ValueError("judge is given, and style is not: name the judge's class that is the style")
        if self.contents and len(self.contents) != len(self.prompts):
            raise ValueError(f"{len(self.contents)} contents for {len(self.prompts)} prompts; give one for each")
        return self


class StyleParams(Params):
    """L = |e(z_t, t, c_style) - target|^2 + lambda |e(z_t', t', c) - e_0(z_t', t', c)|^2, with e_0 the bare model."""

    images: ArtifactName
    """Of kind `images`: the examples, captioned plainly. Published: from 9 of one artist."""
    suffix: Annotated[str, Field(min_length=1, max_length=400)] = " in the style of sks art"
    """Behind a caption, without its full stop, it makes the style's prompt."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 1
    alpha: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """The update is alpha / rank B A. None: the rank; published: 1 at rank 1."""
    target: Literal["all_up", "attention_up", "attention"] = "all_up"
    """`all_up`: attention, convolutions and linear layers of the upsampling half, which is the published adapter.
    `attention_up`: its attention alone, as often told of it."""
    lr: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Of AdamW, constant."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    steps: Annotated[int, Field(ge=1, le=5000)] = 1000
    batch: Annotated[int, Field(ge=1, le=256)] = 5
    preserve_lambda: Annotated[float, Field(ge=0, le=10_000)] = 50.0
    """The weight of the second term, which keeps plain prompts plain."""
    preserve_prompts: tuple[_Prompt, ...] = ()
    """What it is taken at; none: the examples' captions, as published."""
    t_grid: Annotated[int, Field(ge=4, le=1000)] = 50
    """The first term's t, one a batch, is one of so many evenly spaced ones, the first and the last left out."""
    resolution: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Pixels of a side; None: what the model was made for. Published: 512."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.9
    """The smallest share of an image that a step sees (cut at random, then resized). 1: always the whole."""
    sample_every: Annotated[int, Field(ge=0, le=5000)] = 0
    """Steps between samples that are drawn while it trains; 0: none."""
    evaluation: StyleEvaluation = StyleEvaluation()


class StyleResult(Result):
    """Metrics: `preserve_mse` (plain prompts, the adapter on, against the bare model, on held noise) and `style_loss`
    by split `before` and `after`; with a judge `style`, `plain_style` and `content` (mean probabilities) for the splits
    `style prompt`, `plain prompt`, `base, style prompt` (the control) and `base, plain prompt`; `leakage` is `style`
    of plain prompts with the adapter on. Table `history` (step, style_loss, preserve_loss)."""

    adapter: ArtifactName
    """Of kind `diffusers-lora`."""
    matched: int
    """Modules that it is on."""
    pictures: tuple[Picture, ...] = ()
    """Samples as PNG."""


class StyliseParams(Params):
    """SDEdit (arXiv:2108.01073) from a start step, with the adapter off while t is over a gate."""

    images: ArtifactName
    """Of kind `images`; their captions say what they show."""
    adapter: ArtifactName | None = None
    """Of kind `diffusers-lora`. None: the bare model, as a control."""
    suffix: Annotated[str, Field(max_length=400)] = " in the style of sks art"
    """Behind each caption, at all steps, as published."""
    start_t: Annotated[int, Field(ge=1, le=100_000)] = 800
    """Pictures are noised to the first step of the schedule at or below this t, of the scheduler's (1,000)."""
    gate_t: Annotated[int, Field(ge=-1, le=100_000)] = 800
    """The adapter is off while t is greater; -1: it is always on. Published: 800 both."""
    scale: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """The adapter's weight where it is on."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    """Of the whole schedule. Published: 50."""
    guidance: Annotated[float, Field(ge=0, le=100)] = 5.0
    resolution: Annotated[int, Field(ge=8, le=2048)] | None = None
    batch: Annotated[int, Field(ge=1, le=256)] = 8
    judge: ArtifactName | None = None
    """As in `customize.style`."""
    style: Annotated[str, Field(max_length=200)] = ""
    contents: tuple[Annotated[str, Field(max_length=200)], ...] = ()
    """The judge's class that each image shows."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.judge is not None and not self.style:
            raise ValueError("judge is given, and style is not: name the judge's class that is the style")
        return self


class StyliseResult(Result):
    """One artifact of kind `images`: the pictures redrawn, in order. Metric `distance`: root mean square of what
    changed, in units of the range; with a judge `style` and `content`, before and after. `steps_on`: of the steps that
    were run, those with the adapter on."""

    steps_on: int
    """Steps in which the adapter was on."""
    steps_run: int
    """Steps that were run."""
    pictures: tuple[Picture, ...] = ()
    """As given and redrawn, as PNG."""


def estimate(params: StyleParams, facts: ModelFacts) -> Estimate:
    """Two passes a step with gradients, one without; both losses before and after; samples, and four grids."""
    of, preserve, size = params.evaluation, params.preserve_lambda > 0, square(params.resolution)
    images = images_in(facts, params.images, 8)
    prompts = (len(of.prompts) or images) * of.n_per_prompt
    times = params.steps // params.sample_every if params.sample_every else 0
    drawn = [min(8, images)] * times + [prompts] * 4
    held = 2 * 3
    at_once = max(min(images, params.batch), *(min(one, of.batch) for one in drawn))
    return Estimate(
        forwards=params.steps * (1 + 2 * preserve)
        + held * -(-HELD // (4 * params.batch))
        + of.steps * sum(-(-one // of.batch) for one in drawn),
        backwards=params.steps * (1 + preserve),
        tokens=positions(facts, size)
        * (
            params.steps * params.batch * (1 + 2 * preserve)
            + held * HELD
            + (1 + (of.guidance > 1)) * of.steps * sum(drawn)
        ),
        peak_bytes=peak(facts, bytes_backward(facts, params.batch, size), at_once, size)
        + bytes_lora(facts, params.rank) * 2
        + bytes_digest(facts),
    )


def estimate_stylise(params: StyliseParams, facts: ModelFacts) -> Estimate:
    """Of as many images as the artifact has (20 where it is not known), in the steps at or below `start_t`."""
    size = square(params.resolution)
    row, images = positions(facts, size), images_in(facts, params.images, 20)
    steps = min(params.steps, params.start_t * params.steps // 1000 + 1)  # of evenly spaced t below 1,000
    rows = 2 if params.guidance > 1 else 1
    return Estimate(
        forwards=steps * -(-images // params.batch),
        tokens=row * rows * images * steps,
        peak_bytes=peak(facts, bytes_forward(facts, rows * params.batch, size), min(images, params.batch), size)
        + (bytes_lora(facts, 1) + bytes_digest(facts)) * (params.adapter is not None),
    )


_CITES = (
    Citation(
        title="Opt-In Art: Learning Art Styles Only from Few Examples",
        authors="Hui Ren, Joanna Materzynska, Rohit Gandikota, David Bau, Antonio Torralba",
        year=2024,
        where="arXiv:2412.00176",
    ),
)
SPECS = (
    Spec(
        name="customize.style",
        version=1,
        title="Teach a diffusion model a style from a few examples, and keep plain prompts plain.",
        cites=_CITES,
        params=StyleParams,
        result=StyleResult,
        run="interlace.methods.style.run:run",
        estimate=estimate,
        takes={"images": ("images",), "evaluation.judge": ("probe",)},
        makes=("diffusers-lora",),
        page="docs/methods/style.md",
        plot="interlace.methods.style.plot:plot",
        wrappers=("DiffusionModel",),
    ),
    Spec(
        name="images.stylise",
        version=1,
        title="Redraw pictures from a start step with a style's adapter, which is off above a gate.",
        cites=_CITES,
        params=StyliseParams,
        result=StyliseResult,
        run="interlace.methods.style.stylise:run",
        estimate=estimate_stylise,
        takes={"images": ("images",), "adapter": ("diffusers-lora",), "judge": ("probe",)},
        makes=("images",),
        page="docs/methods/style.md",
        plot="interlace.methods.style.plot:plot_stylised",
        wrappers=("DiffusionModel",),
    ),
)
