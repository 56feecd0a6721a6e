"""`denoise.strip`: the pictures behind chosen steps of a diffusion pipeline, small enough to look at."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec
from interlace.methods.shared.pictures import Picture

_MOST_STEPS = 1000
_LATENTS = (4, 64, 64)  # of a picture, where nobody has counted
_STATES = 64  # of a row, the denoiser's own, in sizes of its latents times its first block's channels
_FLOAT = 4  # bytes


Shown = Annotated[tuple[Annotated[int, Field(ge=0, le=_MOST_STEPS)], ...], Field(min_length=1, max_length=64)]
Weight = Annotated[float, Field(ge=-10, le=10)]


class StripParams(Params):
    prompt: Annotated[str, Field(min_length=1, max_length=1000)]
    negative_prompt: Annotated[str, Field(max_length=1000)] = ""
    steps: Annotated[int, Field(ge=1, le=_MOST_STEPS)] = 20
    """Of the denoiser; more are slower, and finer."""
    show: Shown | None = None
    """After how many steps the picture is looked at: 0 is the noise; default: seven or fewer, spread evenly, with the
    first and the last."""
    guidance: Annotated[float, Field(ge=0, le=100)] = 5.0
    """How much more than without the prompt (classifier-free guidance)."""
    adapter: ArtifactName | None = None
    """A style: a `diffusers-lora` of the denoiser, which is on while it draws."""
    weights: Annotated[tuple[Weight, ...], Field(min_length=1, max_length=16)] = (1.0,)
    """Of the adapter: each is a run of its own, with the same noise. 0 is the bare pipeline."""
    edge: Annotated[int, Field(ge=8, le=512)] = 256
    """Pixels: pictures that are larger are made smaller, to this length of the longer edge."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.adapter is None and self.weights != (1.0,):
            raise ValueError("`weights` are those of an `adapter`, and there is none")
        return self


class Shot(Picture):
    """The picture as it was after some steps."""

    #: After so many.
    step: Annotated[int, Field(ge=0, le=2 * _MOST_STEPS)]
    #: Of the adapter; None without one.
    weight: float | None = None
    #: Pixels.
    width: Annotated[int, Field(ge=1, le=4096)]
    height: Annotated[int, Field(ge=1, le=4096)]


class StripResult(Result):
    """Table `steps` (weight, step, timestep, change): how much of the latents' norm each step changes."""

    pictures: list[Shot]
    """By weight, then by step."""


def estimate(params: StripParams, facts: ModelFacts) -> Estimate:
    rows = 2 if params.guidance > 1 else 1
    channels, height, width = facts.latents or _LATENTS
    runs = len(params.weights)
    return Estimate(
        forwards=params.steps * runs,
        tokens=params.steps * runs * rows * height * width,
        peak_bytes=_FLOAT * height * width * (rows * _STATES * max(facts.widths or (320,)) + params.steps * channels),
    )


SPECS = (
    Spec(
        name="denoise.strip",
        version=1,
        title="What a diffusion pipeline has drawn after each of some steps, from noise to picture.",
        cites=(
            Citation(
                title="Denoising Diffusion Implicit Models",
                authors="Song, Meng, Ermon",
                year=2021,
                where="arXiv:2010.02502",
            ),
        ),
        params=StripParams,
        result=StripResult,
        run="interlace.methods.denoise.run:run",
        estimate=estimate,
        takes={"adapter": ("diffusers-lora",)},
        wrappers=("DiffusionModel",),
        page="docs/methods/denoise.md",
        plot="interlace.methods.denoise.plot:plot",
    ),
)
