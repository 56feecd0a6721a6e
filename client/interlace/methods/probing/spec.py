"""`probe.train`: linear readings of states; `erasure.score`: spans whose tokens a model forgets, as lexical units."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec, Texts

ProbedSite = Literal[
    "resid_post", "attn_out", "mlp_out", "mlp_act", "mixer_out", "mixer_in.x", "mixer_in.gate", "ssm_out"
]
#: Of a text, from its first character to behind its last.
Span = Annotated[tuple[int, int], Field()]
_TOKENS_A_CHARACTER = 0.4
_FLOAT = 4  # bytes
_TEXT = 500  # characters, where nobody has counted


class TokenOffsets(Params):
    """What is read at t is the token at t + offset."""

    kind: Literal["token_offset"] = "token_offset"
    offsets: Annotated[tuple[Annotated[int, Field(ge=-16, le=1)], ...], Field(min_length=1, max_length=18)] = (
        -2,
        -1,
        0,
    )
    """`erasure.score` needs -2, -1 and 0, which are the default."""


class Labels(Params):
    """What is read in a text is its class."""

    kind: Literal["label"]
    labels: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(min_length=2)]
    """One for each text."""
    position: Literal["last", "mean"] = "last"
    """The state of the last token, or the mean over tokens."""

    @model_validator(mode="after")
    def _several(self) -> Self:
        if len(set(self.labels)) < 2:
            raise ValueError(f"`labels` has one class, {self.labels[0]!r}; expected two or more")
        return self


class ProbeParams(Params):
    """Feucht et al. 2024: maps without a bias, one for each layer and target, trained together as states stream by."""

    texts: Texts
    target: Annotated[TokenOffsets | Labels, Field(discriminator="kind")] = TokenOffsets()
    site: ProbedSite = "resid_post"
    layers: Annotated[list[int], Field(min_length=1)] | None = None
    """Blocks from 0, negative ones from the end; default: all. The paper compares the second with the tenth of 32."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 16
    """Each reads all texts through the model once: states are not kept."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 4
    """Windows, or labelled texts, of an update: at most, for only those of one length go together."""
    window: Annotated[int, Field(ge=2, le=8192)] = 512
    """Tokens; a longer text is cut into windows. No more than the model takes."""
    lr: Annotated[float, Field(gt=0, le=10)] = 0.1
    """Of AdamW: up to it over a tenth of the updates, then down to 0. The paper's goes down where nothing is gained."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 1e-3
    low_rank: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Probes of this rank; whole ones have vocabulary x width numbers each."""
    vocabulary: Literal["all", "seen"] = "all"
    """Whether a probe tells apart all tokens, or only those of the training texts."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The share of texts that accuracy is measured on; at least one."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not isinstance(self.texts, list):
            return self
        if isinstance(self.target, Labels) and len(self.target.labels) != len(self.texts):
            raise ValueError(f"{len(self.target.labels)} `labels` for {len(self.texts)} `texts`; expected as many")
        if len(self.texts) < 2:
            raise ValueError("one text: expected at least two, for one is measured on")
        return self


class ProbeResult(Result):
    """Table `accuracy` (layer, target, accuracy, low, high, majority, control, n): on held-out texts; `majority` is
    always the commonest class, `control` a probe of the same labels, shuffled (labels only). An artifact of kind
    `probe`: `LAYER.TARGET` [classes, width], or its halves `.A` [rank, width] and `.B` [classes, rank]."""

    classes: list[str]
    """Of labels, in the order of the probe's rows; empty for tokens."""


class ErasureParams(Params):
    """Feucht et al. 2024, section 4: the score psi of a span, and the division of a text into the best ones."""

    probes: ArtifactName
    """Of `probe.train`, for offsets -2, -1 and 0 at both layers."""
    texts: Texts
    layer_start: Annotated[int, Field(ge=0)] = 1
    """The block where a token is still told (the paper's: 1 of Llama 2's 32)."""
    layer_end: Annotated[int, Field(ge=1)] = 9
    """The block where it is forgotten (the paper's)."""
    max_span: Annotated[int, Field(ge=2, le=64)] = 8
    """Tokens of the longest span."""
    window: Annotated[int, Field(ge=2, le=8192)] = 512
    """Tokens that are read together; what is longer is cut. No more than the model takes."""
    spans: list[list[Span]] | None = None
    """For each text, where its lexical units are, in characters; only those of several tokens count. Default: every
    word between white space."""
    shuffles: Annotated[int, Field(ge=1, le=1000)] = 10
    """Divisions of a text whose tokens' scores have changed places, as a control."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.layer_end <= self.layer_start:
            raise ValueError("`layer_end` must be behind `layer_start`")
        if self.spans is not None and isinstance(self.texts, list) and len(self.spans) != len(self.texts):
            raise ValueError(f"{len(self.spans)} lists of `spans` for {len(self.texts)} `texts`; expected as many")
        return self


class ErasureResult(Result):
    """Tables `segments` (text, start, end, string, psi, unit: of several tokens, in the order of the texts),
    `vocabulary` (string, psi, n: the mean over its occurrences) and `accuracy` (layer, offset, token_class, accuracy,
    low, high, n); metrics `precision` and `recall`, each with its control; an artifact of kind `data`: `NUMBER.delta`
    [tokens, offsets -2, -1, 0] of each text, NaN where there is no token."""


def estimate_probes(params: ProbeParams, facts: ModelFacts) -> Estimate:
    n, tokens = _sizes(params.texts)
    targets = len(params.target.offsets) if isinstance(params.target, TokenOffsets) else 2
    layers = facts.n_layers if params.layers is None else len(params.layers)
    passes = params.epochs + 1
    batch = min(params.batch * params.window, tokens)
    weights = facts.vocab_size * facts.hidden_size * targets * layers * 4
    return Estimate(
        forwards=passes * max(1, n // params.batch),
        tokens=passes * tokens,
        peak_bytes=_FLOAT * (weights + batch * (facts.hidden_size * (layers + 16) + 3 * facts.vocab_size)),
    )


def estimate_erasure(params: ErasureParams, facts: ModelFacts) -> Estimate:
    n, tokens = _sizes(params.texts)
    longest = min(params.window, tokens)
    return Estimate(
        forwards=n,
        tokens=tokens,
        peak_bytes=_FLOAT * (longest * (18 * facts.hidden_size + 3 * facts.vocab_size) + longest * longest),
    )


def _sizes(texts: Texts) -> tuple[int, int]:
    """How many texts, and of how many tokens."""
    if isinstance(texts, list):
        return len(texts), int(_TOKENS_A_CHARACTER * sum(map(len, texts))) + 1
    return 1, int(_TOKENS_A_CHARACTER * _TEXT)


_CITES = (
    Citation(
        title="Token Erasure as a Footprint of Implicit Vocabulary Items in LLMs",
        authors="Feucht, Atkinson, Wallace, Bau",
        year=2024,
        where="arXiv:2406.20086",
    ),
)

SPECS = (
    Spec(
        name="probe.train",
        version=1,
        title="Linear probes: which tokens around, or which class of a text, a state tells, by layer.",
        cites=_CITES,
        params=ProbeParams,
        result=ProbeResult,
        run="interlace.methods.probing.run:run",
        estimate=estimate_probes,
        takes={"texts": ("texts",)},
        makes=("probe",),
        page="docs/methods/probing.md",
        plot="interlace.methods.probing.plot:accuracy",
    ),
    Spec(
        name="erasure.score",
        version=1,
        title="Token erasure: spans whose tokens the model forgets, as its implicit vocabulary.",
        cites=_CITES,
        params=ErasureParams,
        result=ErasureResult,
        run="interlace.methods.probing.erasure:run",
        estimate=estimate_erasure,
        takes={"probes": ("probe",), "texts": ("texts",)},
        makes=("data",),
        page="docs/methods/probing.md",
        plot="interlace.methods.probing.plot:segments",
    ),
)
