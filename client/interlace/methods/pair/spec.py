"""`customize.pair` and `customize.generate`: what they take, what they give, what they cost.

Maxwell Jones, Sheng-Yu Wang, Nupur Kumari, David Bau, Jun-Yan Zhu, "Customizing Text-to-Image Models with a Single
Image Pair", arXiv:2405.01536. "code" is the authors' repository; defaults are the paper's, for SDXL.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec
from interlace.methods.shared.denoising.denoiser_cost import (
    bytes_backward,
    bytes_digest,
    bytes_forward,
    bytes_lora,
    peak,
    positions,
    size_in,
)

_CITE = Citation(
    title="Customizing Text-to-Image Models with a Single Image Pair",
    authors="Maxwell Jones, Sheng-Yu Wang, Nupur Kumari, David Bau, Jun-Yan Zhu",
    year=2024,
    where="arXiv:2405.01536",
)
Prompt = Annotated[str, Field(max_length=1000)]
Rank = Annotated[int, Field(ge=1, le=1024)]
#: Rows of a pass that draws.
_ROWS = 8


class Samples(Params):
    """Pictures that are drawn while it trains, with the style as it is by then."""

    prompts: tuple[Prompt, ...] = Field(min_length=1, max_length=16)
    """Without the suffix, which is added."""
    every: int = Field(default=250, ge=1)
    """Updates between two times; also at the end."""
    steps: int = Field(default=20, ge=1, le=1000)
    guidance: float = Field(default=5.0, ge=1)
    strength: float = Field(default=3.0, ge=0)
    """Of the style guidance."""


class PairParams(Params):
    """min over dC, dS of L_content + L_combined (Eq. 7), B alone trained."""

    images: ArtifactName
    """Two aligned pictures of one size, of kind `images`: the content, then the same in the style."""
    subject: Prompt
    """What the first shows, with a rare word for it: "a photo of a sbu dog"."""
    suffix: Prompt
    """What the style is called; "SUBJECT SUFFIX" is the second picture's prompt: "in digital art style"."""
    content_rank: Rank = 64
    style_rank: Rank = 64
    """Both together at most what the narrowest layer reads, where A is orthogonal."""
    orthogonal: bool = True
    """Rows of A are disjoint rows of one orthonormal basis, frozen (Eq. 8). Off: A is random, and trained."""
    basis_seed: int = 123846
    """Code: 123846."""
    targets: tuple[str, ...] = Field(default=("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Ends of the paths of the denoiser's layers that are adapted; all attention, self and cross."""
    joint: bool = True
    """Off: the style LoRA alone, on the second picture (a DreamBooth LoRA): the paper's baseline."""
    content_steps: int = Field(default=250, ge=0, le=100_000)
    """Updates of the content LoRA alone, before both."""
    joint_steps: int = Field(default=500, ge=1, le=100_000)
    lr: float = Field(default=1e-5, gt=0)
    """Of AdamW, constant. Code: 1e-5."""
    weight_decay: float = Field(default=1e-4, ge=0)
    batch: int = Field(default=1, ge=1, le=64)
    """Rows of a pass, each with a noise and a t of its own; the same for both pictures."""
    grad_accum: int = Field(default=4, ge=1, le=64)
    samples: Samples | None = None

    @property
    def content(self) -> str:
        return self.subject

    @property
    def styled(self) -> str:
        return f"{self.subject} {self.suffix}"

    @property
    def first_steps(self) -> int:
        """Updates before the style's first: none without a content LoRA."""
        return self.content_steps if self.joint else 0


class PairResult(Result):
    """What came of it."""

    style: ArtifactName = ""
    """The style LoRA, of kind `diffusers-lora`: what `customize.generate` and `env.lora` take."""
    content: ArtifactName | None = None
    """The content LoRA, which inference does not use; None where there is none."""
    pictures: ArtifactName | None = None
    """The samples, of kind `images`; None for none."""


class Style(Params):
    """One style to draw with."""

    adapter: ArtifactName
    suffix: Prompt = ""
    """Behind the prompt where the style speaks: c_style = "PROMPT SUFFIX"."""
    strength: float = Field(default=3.0, ge=-100, le=100)
    """lambda_style of Eq. 10; as `lora_scale`, the adapter's weight. Paper: 3 in the pair's category, 4 in others."""
    start: float = Field(default=0.2, ge=0, le=1)
    """The share of the steps that are drawn before the style comes in. Paper: the first 10 of 50."""
    end: float = Field(default=1.0, ge=0, le=1)
    """The share of the steps behind which it is off again."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start > self.end:
            raise ValueError(f"start is {self.start} and end is {self.end}; expected start <= end")
        return self


class GenerateParams(Params):
    """e = e0(x, 0) + guidance (e0(x, c) - e0(x, 0)) + sum_i strength_i (e_i(x, c_i) - e0(x, c)) (Eq. 10, 11)."""

    prompts: tuple[Prompt, ...] = Field(min_length=1, max_length=1000)
    styles: tuple[Style, ...] = Field(default=(), max_length=8)
    """Several are blended (Eq. 11)."""
    per_prompt: int = Field(default=1, ge=1, le=1000)
    """Pictures of each prompt; picture i of all begins with the noise of the seed + i."""
    how: Literal["style_guidance", "lora_scale"] = "style_guidance"
    """`lora_scale`: the adapters are on in every row, at their strengths, and all rows with a prompt have all
    suffixes: the usual way, for comparison."""
    guidance: float = Field(default=5.0, ge=1, le=100)
    """lambda_cfg. Code: 5."""
    steps: int = Field(default=50, ge=1, le=1000)
    size: tuple[int, int] | None = None
    """Height and width in pixels; None: what the denoiser was made for."""
    batch: int = Field(default=_ROWS, ge=1, le=256)
    """Pictures that are drawn together."""


class GenerateResult(Result):
    """What was drawn. Table `terms`: the norm of each term of the guidance at each step, the mean of all pictures."""

    images: ArtifactName = ""
    """Kind `images`, prompt by prompt."""
    denoiser_rows: int = 0
    """Rows that went through the denoiser."""


def estimate(params: PairParams, facts: ModelFacts) -> Estimate:
    """Two passes an update and accumulation, one before the style comes in or without content; and the samples."""
    both = params.joint_steps * (1 + params.joint)
    passes = (params.first_steps + both) * params.grad_accum
    size = size_in(facts, params.images)
    tokens, forwards = passes * params.batch * positions(facts, size), passes
    if (of := params.samples) is not None:
        first, end = params.first_steps, params.first_steps + params.joint_steps
        times = end // of.every - first // of.every + bool(end % of.every)
        styled = of.steps - of.steps // 5
        forwards += times * (of.steps + styled)
        tokens += times * (2 * of.steps + styled) * len(of.prompts) * positions(facts)
    lora = bytes_lora(facts, params.content_rank + params.style_rank)
    return Estimate(
        forwards=forwards,
        backwards=passes,
        tokens=tokens,
        peak_bytes=peak(facts, bytes_backward(facts, params.batch, size), 2, size) + lora + bytes_digest(facts),
    )


def estimate_generate(params: GenerateParams, facts: ModelFacts) -> Estimate:
    pictures = len(params.prompts) * params.per_prompt
    batches = -(-pictures // params.batch)
    more = 0
    if params.how == "style_guidance":
        spans = [
            (round(one.start * params.steps), round(one.end * params.steps)) for one in params.styles if one.strength
        ]
        more = sum(end - start for start, end in spans)
    rows = pictures * (2 * params.steps + more)
    return Estimate(
        forwards=batches * (params.steps + more),
        tokens=rows * positions(facts, params.size),
        peak_bytes=peak(
            facts, bytes_forward(facts, 2 * params.batch, params.size), min(pictures, params.batch), params.size
        )
        + bytes_lora(facts, 64 * len(params.styles)) // 8
        + bytes_digest(facts) * bool(params.styles),
    )


SPECS = (
    Spec(
        name="customize.pair",
        version=1,
        title="Learn a style from one pair of pictures: what both show, and what only the second has, in two LoRAs.",
        cites=(_CITE,),
        params=PairParams,
        result=PairResult,
        run="interlace.methods.pair.run:run",
        estimate=estimate,
        takes={"images": ("images",)},
        makes=("diffusers-lora", "images"),
        page="docs/methods/pair.md",
        plot="interlace.methods.pair.plot:plot",
        wrappers=("DiffusionModel",),
    ),
    Spec(
        name="customize.generate",
        version=1,
        title="Draw with learned styles, by style guidance: how much of each, from which step on, several at once.",
        cites=(_CITE,),
        params=GenerateParams,
        result=GenerateResult,
        run="interlace.methods.pair.draw:run",
        estimate=estimate_generate,
        takes={"styles.adapter": ("diffusers-lora",)},
        makes=("images",),
        page="docs/methods/pair.md",
        plot="interlace.methods.pair.plot:plot_terms",
        wrappers=("DiffusionModel",),
    ),
)
