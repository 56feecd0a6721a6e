"""`denoise.strip`: the pictures behind chosen steps of a diffusion pipeline, small enough to look at."""

from typing import Annotated

from pydantic import Field

from interlace.methods._pictures import Picture
from interlace.methods.base import Citation, Estimate, ModelFacts, Params, Result, Spec

_MOST_STEPS = 1000
_TOKENS = 77  # of a prompt, padded
_LATENTS = 4 * 64 * 64  # of a picture, where nobody has counted
_FLOAT = 4  # bytes


Shown = Annotated[tuple[Annotated[int, Field(ge=0, le=_MOST_STEPS)], ...], Field(min_length=1, max_length=64)]


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
    edge: Annotated[int, Field(ge=8, le=512)] = 256
    """Pixels: pictures that are larger are made smaller, to this length of the longer edge."""


class Shot(Picture):
    """The picture as it was after some steps."""

    #: After so many.
    step: Annotated[int, Field(ge=0, le=_MOST_STEPS)]
    #: Pixels.
    width: Annotated[int, Field(ge=1, le=4096)]
    height: Annotated[int, Field(ge=1, le=4096)]


class StripResult(Result):
    """Table `steps` (step, timestep, change): how much of the latents' norm each step changes."""

    pictures: list[Shot]


def estimate(params: StripParams, facts: ModelFacts) -> Estimate:
    rows = 2 if params.guidance > 1 else 1
    return Estimate(
        forwards=params.steps,
        tokens=params.steps * rows * _TOKENS,
        peak_bytes=_FLOAT * _LATENTS * (rows * 64 + params.steps),
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
        page="docs/methods/denoise.md",
        plot="interlace.methods.denoise.plot:plot",
    ),
)
