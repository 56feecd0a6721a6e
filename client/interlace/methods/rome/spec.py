"""`edit.rome`: a rank-one edit that makes a model give another object for one subject and relation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec, Texts

Site = Literal["auto", "mlp_out", "attn_out", "mixer_out", "mixer_in.x", "mixer_in.gate"]
Text = Annotated[str, Field(min_length=1, max_length=4000)]
Word = Annotated[str, Field(min_length=1, max_length=200)]
_TOKENS_A_CHARACTER = 0.4


class Asked(Params):
    """A prompt, and what is right after it."""

    prompt: Text
    answer: Word


class Request(Params):
    """One fact to change, and what it is judged by. Prompts have `{}` where the subject goes."""

    prompt: Text
    """Such as "{} plays the instrument"."""
    subject: Word
    target_new: Word
    target_true: Word | None = None
    """What the model says now; without it ES, PS and NS are not computed, for they compare the two."""
    contexts: tuple[Text, ...] = ()
    """Other wordings of the same fact with `{}`, over which the key and the loss are averaged beside the prompt's own.
    Small models form no key that is the same under all wordings, and an edit in one alone does not carry over."""
    paraphrases: tuple[Text, ...] = ()
    """Wordings with `{}` that the edit does not see: PS."""
    neighbours: tuple[Asked, ...] = ()
    """Whole prompts of other subjects, whose answers must stay: NS."""
    other_relations: tuple[Asked, ...] = ()
    """Whole prompts of other facts of this subject, whose answers should stay."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for text in (self.prompt, *self.contexts, *self.paraphrases):
            if text.count("{}") != 1:
                raise ValueError(f"{text[:64]!r} must have `{{}}` once, where the subject goes")
        return self


class RomeParams(Params):
    """Meng et al. 2022, section 3.1 (GPT); Sharma et al. 2024, section 4 (Mamba). Numbers are those of their code."""

    requests: Annotated[tuple[Request, ...], Field(min_length=1, max_length=2000)]
    layer: Annotated[int, Field(ge=0)]
    """The block that is edited. Published: 17 of GPT-2 XL's 48, 5 of GPT-J's 28, 15 of Mamba-2.8b's 64."""
    site: Site = "auto"
    """The projection. `auto`: the MLP's down projection, or a Mamba block's out_proj; `mixer_in.x` and `mixer_in.gate`
    are the two halves of its in_proj."""
    apply: Literal["each", "together"] = "each"
    """`each`: every edit is made and judged on the unedited model, an artifact each (the papers); `together`: one after
    the other on top of each other, one artifact, judged at the end."""
    texts: Texts | None = None
    """For the keys' covariance; the papers take 100,000 samples of Wikipedia."""
    covariance: ArtifactName | None = None
    """In place of `texts`: what a former run kept."""
    keep_covariance: bool = False
    """Keep it as an artifact of kind `data`, for later edits at the same site."""
    most_tokens: Annotated[int, Field(ge=1)] = 100_000
    """Of `texts`, from the first on."""
    ridge: Annotated[float, Field(ge=0, le=10)] = 1e-4
    """Added to the covariance's diagonal, as a share of its mean; the solve is in fp64."""
    key: Literal["covariance", "raw", "random"] = "covariance"
    """`covariance`: u = C^-1 k (the paper); `raw`: u = k and `random`: a random direction are controls."""
    sampled: tuple[tuple[Annotated[int, Field(ge=0, le=100)], Annotated[int, Field(ge=1, le=100)]], ...] = (
        (10, 5),
        (10, 10),
    )
    """(n, tokens): prefixes that the model itself samples, which go before the prompt as contexts (reference code)."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    lr: Annotated[float, Field(gt=0, le=10)] = 0.5
    """Of Adam, on the value."""
    clamp: Annotated[float, Field(gt=0)] = 3.0
    """The most that the value changes, times its norm; 4 for GPT in the reference code, 3 for Mamba."""
    kl: Annotated[float, Field(ge=0)] = 0.0625
    """Weight of KL(edited || unedited) after "{subject} is a"."""
    decay: Annotated[float, Field(ge=0)] = 0.5
    """Weight of |delta| / |v|^2 (sic, reference code; the paper's equation 4 has none: 0)."""
    enough: Annotated[float, Field(ge=0)] = 0.05
    """The loss at which the steps end."""
    unrelated: tuple[Asked, ...] = ()
    """Facts that have nothing to do with any request, to be kept."""
    filter_known: bool = True
    """Judge neighbours, other relations and unrelated facts only where the unedited model's first choice is right."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 64
    """Rows of a forward."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.key == "covariance" and (self.texts is None) == (self.covariance is None):
            raise ValueError("the key needs a covariance: give one of `texts` and `covariance` (or take `key: raw`)")
        return self


class RomeResult(Result):
    """Metrics ES, PS, NS and S, their argmax versions ES_acc..., ES_diff, PS_diff, NS_diff (probabilities),
    other_relations and unrelated, of split `before` and `after`; tables `requests` and `optimisation`; edits."""

    condition: float | None = None
    """Of the covariance with its ridge; None where there is none, or it is wider than 4,096."""
    cov_tokens: int = 0
    """That the covariance is of."""


def estimate(params: RomeParams, facts: ModelFacts) -> Estimate:
    prefixes = sum(n for n, _ in params.sampled)
    longest = max(length for _, length in (*params.sampled, (0, 1)))
    forwards = tokens = backwards = 0
    for request in params.requests:
        length = int(_TOKENS_A_CHARACTER * max(len(one) for one in (request.prompt, *request.contexts))) + 6
        rows = 2 + len(request.contexts) + prefixes
        judged = 1 + len(request.paraphrases) + len(request.neighbours) + len(request.other_relations)
        judged += len(params.unrelated)
        forwards += 2 + params.steps + 4 * -(-2 * judged // params.batch)
        backwards += params.steps
        tokens += (params.steps + 2) * rows * (length + longest) + 4 * judged * length
    read = params.most_tokens if params.texts is not None else 0
    if isinstance(params.texts, list):
        read = min(read, int(_TOKENS_A_CHARACTER * sum(len(one) for one in params.texts)))
    wide = 4 * facts.hidden_size
    peak = 8 * 3 * wide * wide + 4 * params.batch * 64 * (facts.vocab_size + 12 * facts.n_layers * facts.hidden_size)
    return Estimate(
        forwards=forwards + -(-read // (params.batch * 64)),
        backwards=backwards,
        tokens=tokens + read,
        peak_bytes=peak,
    )


SPECS = (
    Spec(
        name="edit.rome",
        version=2,
        title="Change a fact by a rank-one edit of one projection (ROME), and judge it.",
        cites=(
            Citation(
                title="Locating and Editing Factual Associations in GPT",
                authors="Meng, Bau, Andonian, Belinkov",
                year=2022,
                where="arXiv:2202.05262",
            ),
            Citation(
                title="Locating and Editing Factual Associations in Mamba",
                authors="Sharma, Atkinson, Bau",
                year=2024,
                where="arXiv:2404.03646",
            ),
        ),
        params=RomeParams,
        result=RomeResult,
        run="interlace.methods.rome.run:run",
        estimate=estimate,
        takes={"texts": ("texts",), "covariance": ("data",)},
        makes=("edit", "data"),
        page="docs/methods/rome.md",
        plot="interlace.methods.rome.plot:plot",
    ),
)
