"""`steer`: a direction of a layer, as a difference of means or as given, added at several strengths."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec, Texts

SteeredSite = Literal["resid_post", "attn_out", "mlp_out", "mixer_out"]
_TOKENS_A_CHARACTER = 0.4
_FLOAT = 4  # bytes


class Probed(Params):
    """A prompt, what it should rather go on with, and what rather not."""

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    wanted: Annotated[str, Field(min_length=1, max_length=200)]
    """Only its first token counts, as of `other`."""
    other: Annotated[str, Field(min_length=1, max_length=200)]


class SteerParams(Params):
    """Turner et al. 2023 (activation addition) with Rimsky et al. 2024's mean over pairs: h + scale * direction."""

    layer: Annotated[int, Field(ge=0)]
    site: SteeredSite = "resid_post"
    positive: Texts | None = None
    """Texts that have what is to be added; with `negative` they give the direction."""
    negative: Texts | None = None
    """Texts that have not."""
    position: Literal["last", "mean"] = "last"
    """The states that are averaged: of each text's last token, or of all."""
    direction: ArtifactName | None = None
    """In their place: a `data` artifact with the tensor `direction` [width], such as an earlier run's."""
    normalise: bool = False
    """Whether the direction is brought to the mean norm of the site's states, so that scales can be compared."""
    scales: Annotated[tuple[Annotated[float, Field(ge=-1000, le=1000)], ...], Field(min_length=1, max_length=32)] = (
        -1.0,
        0.5,
        1.0,
        2.0,
    )
    prompts: Annotated[list[Probed], Field(min_length=1, max_length=2000)]
    """What the effect is measured on. Steered at every token, as a hosted model would be while it writes."""
    neutral: Texts
    """What the harm is measured on: texts that should be as likely as before."""
    controls: Annotated[int, Field(ge=1, le=100)] = 3
    """Random directions of the same norm."""
    write: Annotated[int, Field(ge=0, le=200)] = 0
    """Tokens with which each prompt is gone on with, the likeliest each time: without the direction (scale 0) and at
    each scale, in a table `texts` (scale, prompt, text)."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows of a forward."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        two = self.positive is not None and self.negative is not None
        none = self.positive is None and self.negative is None
        if not (none if self.direction is not None else two):
            raise ValueError("give `positive` and `negative`, or `direction`, and not both")
        return self


class SteerResult(Result):
    """Table `scales` (scale, direction, effect, low, high, wins, nats, low, high of nats' growth): `effect` is the mean
    growth of log P(wanted) - log P(other), `harm` the growth of the neutral texts' nats per token; of the direction and
    of random ones. An artifact of kind `data` with `direction` [width]."""

    norm: float
    """Of the direction."""
    states_norm: float
    """Mean norm of the site's states on the neutral texts."""


def estimate(params: SteerParams, facts: ModelFacts) -> Estimate:
    texts = [one for one in (params.positive, params.negative, params.neutral) if isinstance(one, list)]
    read = sum(_TOKENS_A_CHARACTER * len(text) + 1 for some in texts[:-1] for text in some)
    asked = sum(_TOKENS_A_CHARACTER * len(one.prompt) + 1 for one in params.prompts)
    neutral = sum(_TOKENS_A_CHARACTER * len(text) + 1 for text in texts[-1]) if texts else 1
    runs = 1 + len(params.scales) * (1 + params.controls)
    written = params.write * len(params.prompts) * (1 + len(params.scales))
    grown = params.write * (1 + len(params.scales)) * (asked + params.write * len(params.prompts) / 2)
    longest = max((len(text) for some in texts for text in some), default=100) * _TOKENS_A_CHARACTER
    return Estimate(
        forwards=int(sum(map(len, texts)) + runs * (len(params.prompts) + len(texts[-1] if texts else [])))
        // params.batch
        + runs
        + written,
        tokens=int(read + runs * (asked + neutral) + grown),
        peak_bytes=int(_FLOAT * params.batch * longest * (facts.vocab_size * 2 + 16 * facts.hidden_size)),
    )


SPECS = (
    Spec(
        name="steer",
        version=1,
        title="Add a direction to the states of a layer: what it makes likelier, and what it harms.",
        cites=(
            Citation(
                title="Steering Language Models With Activation Engineering",
                authors="Turner, Thiergart, Leech, Udell, Vazquez, Mini, MacDiarmid",
                year=2023,
                where="arXiv:2308.10248",
            ),
            Citation(
                title="Steering Llama 2 via Contrastive Activation Addition",
                authors="Rimsky, Gabrieli, Schulz, Tong, Hubinger, Turner",
                year=2024,
                where="arXiv:2312.06681",
            ),
        ),
        params=SteerParams,
        result=SteerResult,
        run="interlace.methods.steering.run:run",
        estimate=estimate,
        takes={"positive": ("texts",), "negative": ("texts",), "neutral": ("texts",), "direction": ("data",)},
        makes=("data",),
        page="docs/methods/steering.md",
        plot="interlace.methods.steering.plot:plot",
    ),
)
