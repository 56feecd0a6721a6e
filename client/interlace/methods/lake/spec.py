"""`lake.sketch`, `merge`, `recover`, `compare`, `attribute` and `attribute_images`: what they take, give and cost."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec, Texts
from interlace.methods.shared.denoising.denoiser_cost import bytes_forward, bytes_lora, images_in, positions

#: Plain sentences of many kinds, for what two models say of them.
PROBES = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Water boils at one hundred degrees and freezes at zero.",
    "She opened the door, looked around, and said nothing at all.",
    "def add(a, b):\n    return a + b\n",
    "In 1969 two people walked on the moon for the first time.",
    "The quick brown fox jumps over the lazy dog.",
    "If it rains tomorrow, the match will be played on Sunday.",
    "One, two, three, four, five, six, seven, eight, nine, ten.",
]
_MATRICES = ("weights", "sketch", "peft", "edit")
_RUNNABLE = ("weights", "peft", "edit")
#: One or more; in a job, `protocol.method.MOST_ARTIFACTS` at most.
Names = Annotated[
    list[ArtifactName],
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    Field(min_length=1, max_length=256),
]
_FLOAT = 4  # bytes
_TOKENS = 0.5  # of a character, at most, on the whole


class SketchParams(Params):
    """A sketch of the model's weights, with the edits that are on left out: 64 numbers for each row."""

    title: str = Field(default="", max_length=128)
    """For people."""


class SketchResult(Result):
    """One artifact of the kind `sketch`."""

    matrices: int
    """Matrices of weights that the sketch is of."""


class MergeParams(Params):
    """The model with adapters and edits added to its weights: W + sum of share_i (B A)_i, as one checkpoint."""

    of: Names
    """Adapters and edits of the hosted model."""
    shares: Annotated[list[Annotated[float, Field(ge=-100, le=100)]], Field(min_length=1)] | None = None
    """What each is multiplied with; default: 1. With 1/n each it is the mean of the n models; a negative one takes away
    what an adapter has taught (Ilharco et al. 2023, section 2)."""
    title: str = Field(default="", max_length=128)
    """For people."""

    @model_validator(mode="after")
    def _each_a_share(self) -> Self:
        if self.shares is not None and len(self.shares) != len(self.of):
            raise ValueError(f"`shares` has {len(self.shares)} for {len(self.of)} of `of`")
        return self


class MergeResult(Result):
    """One artifact of the kind `weights`. Metrics `changed` (tensors that differ from the model's) and
    `relative_change`: the norm of all changes over that of the weights which they change."""


class RecoverParams(Params):
    """Which weights came of which. All are of the architecture of the hosted model."""

    models: Names
    """Checkpoints, sketches, or what changes the hosted model: adapters and edits."""
    times: Annotated[list[float | None], Field(min_length=1)] | None = None
    """When each came, as Unix time or any other number that grows: a parent is older. None for one: not known.
    Of two with equal times the one whose weights have the smaller norm counts as older."""
    include_model: bool = True
    """Whether the hosted model is one of them, older than all that it is related to."""
    distance: Literal["frobenius", "rank"] = "frobenius"
    """`rank`, the sum of the ranks of differences, for merged LoRAs in full precision (MoTHer's for LoRA)."""
    kurtosis: Literal["off", "falls", "rises"] = "off"
    """Direct edges by kurtosis where no time and no root is known: `falls` from parent to child is published for
    fine-tuning, `rises` for pretraining. It is the stage of training that decides, and it must be known: in small nets
    near their start the published sign points the wrong way."""
    fans: Literal["unknown", "siblings"] = "unknown"
    """What is known of groups that look like runs of one sweep. `siblings`: that they are, so that all came of what the
    first of them came of. Checkpoints of one run look the same, and of those that is wrong."""
    z_related: float = Field(default=8.0, gt=0)
    """Standard deviations by which two must be nearer than with rows permuted to be related at all."""

    @model_validator(mode="after")
    def _each_a_time(self) -> Self:
        if self.times is not None and len(self.times) != len(self.models):
            raise ValueError(f"`times` has {len(self.times)} for {len(self.models)} of `models`")
        return self


class HeritageEdge(Params):
    """One edge: `artifact:...`, or `model` for the hosted one."""

    parent: str
    child: str
    margin: float


class RecoverResult(Result):
    """Table `edges` (parent, child, relative distance, runner-up, margin, directed by) and `pairs` (one, other,
    relative distance, rank, spectral distance, z). Metrics `related` and `edges`. A suspected merge has
    two edges. Warnings name duplicates, merges, permuted copies, and groups with `fan_suspected`, of whose inner edges
    nothing is known but by `fans`."""

    heritage: tuple[HeritageEdge, ...] = ()
    """What a lake takes from it: both parents of a suspected merge; nothing within a suspected fan, unless its members
    are known to be siblings."""
    families: tuple[tuple[str, ...], ...] = ()
    """What is related to each other; alone: what is related to none."""


class CompareParams(Params):
    """Two models of one architecture."""

    other: ArtifactName
    """A checkpoint, a sketch (by weights only), an adapter or an edit of the hosted model."""
    one: ArtifactName | None = None
    """What it is set beside; default: the hosted model as it is."""
    probes: Texts = PROBES
    """What both are read with."""
    sae: ArtifactName | None = None
    """A dictionary, whose features are compared on the probes."""
    top: int = Field(default=20, ge=1, le=1000)
    """Features that are named: those whose mean differs most."""
    context: int = Field(default=128, ge=2, le=2048)
    """Tokens of a probe; fewer where the model reads no more."""


class CompareResult(Result):
    """Table `layers` (matrix, relative distance, mean absolute difference, cosine, energy rank, kurtosis of both); with
    a dictionary `features` (feature, mean in one, in the other, difference). Metrics: `relative_distance`, `z_related`,
    `kl` and `kl_back` and `js` [nats/token], `top1_agreement`, `loss_one`, `loss_other`, `feature_cosine`."""


class Output(Params):
    """A text that somebody has written, after a prompt."""

    text: str = Field(min_length=1, max_length=100_000)
    prompt: str = Field(default="", max_length=100_000)


class AttributeParams(Params):
    """Which of some models has written texts, if one of them has."""

    outputs: Annotated[list[Output], Field(min_length=1, max_length=1000)]
    candidates: Names
    """Checkpoints, adapters or edits of the hosted model."""
    include_model: bool = True
    """Whether the hosted model as it is, is one of them."""
    resamples: int = Field(default=1000, ge=100, le=100_000)
    """Of the outputs, for the interval of the margin."""


class AttributeResult(Result):
    """Table `candidates` (candidate, nats per token, low, high, wins, posterior), the likeliest first. Metrics
    `margin` (nats per token between the first and the second, with its interval over outputs) and `decided`: 1 where
    that interval is above 0. None of the candidates need have written it: see the page. A cancelled run compares the
    candidates that it has read, which a warning counts; with one alone there is no `margin`."""

    best: str
    """`model` is the hosted one."""


class AttributeImagesParams(Params):
    """Which of some adapters has drawn pictures, if one of them has."""

    images: ArtifactName
    """Of kind `images`. Their captions are the prompts that they were drawn with, as far as those are known."""
    candidates: Names
    """Adapters of the hosted model."""
    include_model: bool = True
    """Whether the hosted model as it is, is one of them."""
    suffix: str = Field(default="", max_length=400)
    """Behind each caption: a style's words, where the pictures were drawn with them."""
    draws: int = Field(default=32, ge=1, le=1000)
    """Of noise for each image, at as many evenly spaced t, the same for each candidate."""
    batch: int = Field(default=32, ge=1, le=256)
    resamples: int = Field(default=1000, ge=100, le=100_000)
    """Of the images, for the interval of the margin."""


class AttributeImagesResult(Result):
    """Table `candidates` (candidate, loss, low, high, wins), the likeliest first. Metrics `margin` (of the mean square
    error, between the first and the second, with its interval over images) and `decided`: 1 where that interval is
    above 0. None of the candidates need have drawn them: see the page. A cancelled run compares the candidates that it
    has read, which a warning counts; with one alone there is no `margin`."""

    best: str
    """`model` is the hosted one."""


def _sketching(params: SketchParams, facts: ModelFacts) -> Estimate:
    return Estimate(forwards=1, tokens=1, peak_bytes=3 * _FLOAT * facts.hidden_size * 4 * facts.hidden_size + (8 << 20))


def _merging(params: MergeParams, facts: ModelFacts) -> Estimate:
    # The checkpoint, its file, and every matrix that changes once more in fp32.
    bytes_ = facts.n_params * (2 * facts.weight_bytes + _FLOAT)
    return Estimate(forwards=1, tokens=1, peak_bytes=bytes_ + (8 << 20))


def _recovering(params: RecoverParams, facts: ModelFacts) -> Estimate:
    matrix = 4 * facts.hidden_size**2
    return Estimate(forwards=1, tokens=1, peak_bytes=4 * _FLOAT * matrix * (1 + len(params.models)) + (8 << 20))


def _comparing(params: CompareParams, facts: ModelFacts) -> Estimate:
    texts = params.probes if isinstance(params.probes, list) else [" " * 2 * params.context] * 64
    tokens = sum(min(params.context, int(_TOKENS * len(text)) + 2) for text in texts)
    return Estimate(
        forwards=2 * len(texts),
        tokens=2 * tokens,
        # What both say of all probes is kept, in fp64, beside what one passes through.
        peak_bytes=_FLOAT * (12 * params.context * facts.vocab_size + 16 * facts.hidden_size**2)
        + 2 * 2 * _FLOAT * tokens * facts.vocab_size,
    )


def _attributing(params: AttributeParams, facts: ModelFacts) -> Estimate:
    models = len(params.candidates) + params.include_model
    lengths = [int(_TOKENS * (len(one.text) + len(one.prompt))) + 2 for one in params.outputs]
    return Estimate(
        forwards=models * len(lengths),
        tokens=models * sum(lengths),
        peak_bytes=_FLOAT * (6 * max(lengths) * facts.vocab_size + facts.n_params),
    )


def _attributing_images(params: AttributeImagesParams, facts: ModelFacts) -> Estimate:
    models, images = len(params.candidates) + params.include_model, images_in(facts, params.images, 8)
    return Estimate(
        forwards=models * images * -(-params.draws // params.batch),
        tokens=models * images * params.draws * positions(facts),
        peak_bytes=bytes_forward(facts, params.batch) + bytes_lora(facts, 16),
    )


_MOTHER = Citation(
    title="Unsupervised Model Tree Heritage Recovery",
    authors="Horwitz, Shul, Hoshen",
    year=2025,
    where="arXiv:2405.18432",
)
_LAKES = Citation(title="Model Lakes", authors="Pal, Bau, Miller", year=2025, where="arXiv:2403.02327")
_INDEPENDENCE = Citation(
    title="Independence Tests for Language Models",
    authors="Zhu, Ahmed, Kuditipudi, Liang",
    year=2025,
    where="arXiv:2502.12292",
)
_ARITHMETIC = Citation(
    title="Editing Models with Task Arithmetic",
    authors="Ilharco, Ribeiro, Wortsman, Gururangan, Schmidt, Hajishirzi, Farhadi",
    year=2023,
    where="arXiv:2212.04089",
)
_DENOISING = Citation(
    title="Denoising Diffusion Probabilistic Models", authors="Ho, Jain, Abbeel", year=2020, where="arXiv:2006.11239"
)
_PAGE = "docs/methods/lake.md"

SPECS = (
    Spec(
        name="lake.sketch",
        version=1,
        title="A small sketch of a model's weights, which stands for them where others are compared with it.",
        cites=(_LAKES,),
        params=SketchParams,
        result=SketchResult,
        run="interlace.methods.lake.run:sketch",
        estimate=_sketching,
        makes=("sketch",),
        page=_PAGE,
    ),
    Spec(
        name="lake.merge",
        version=1,
        title="The model with adapters and edits added to its weights, as a checkpoint of its own.",
        cites=(_ARITHMETIC, _LAKES),
        params=MergeParams,
        result=MergeResult,
        run="interlace.methods.lake.merge:run",
        estimate=_merging,
        takes={"of": ("peft", "edit")},
        makes=("weights",),
        page=_PAGE,
    ),
    Spec(
        name="lake.recover",
        version=2,
        title="Which weights came of which: heritage recovered from models without records.",
        cites=(_MOTHER, _INDEPENDENCE, _LAKES),
        params=RecoverParams,
        result=RecoverResult,
        run="interlace.methods.lake.run:recover",
        estimate=_recovering,
        takes={"models": _MATRICES},
        page=_PAGE,
        plot="interlace.methods.lake.plot:heritage",
    ),
    Spec(
        name="lake.compare",
        version=1,
        title="Two models side by side: weights layer by layer, what they say, and features of a dictionary.",
        cites=(_LAKES, _INDEPENDENCE),
        params=CompareParams,
        result=CompareResult,
        run="interlace.methods.lake.compare:run",
        estimate=_comparing,
        takes={"one": _RUNNABLE, "other": _MATRICES, "probes": ("texts",), "sae": ("sae",)},
        page=_PAGE,
        plot="interlace.methods.lake.plot:layers",
    ),
    Spec(
        name="lake.attribute",
        version=1,
        title="Which of some models has most likely written texts.",
        cites=(_LAKES,),
        params=AttributeParams,
        result=AttributeResult,
        run="interlace.methods.lake.attribute:run",
        estimate=_attributing,
        takes={"candidates": _RUNNABLE},
        page=_PAGE,
    ),
    Spec(
        name="lake.attribute_images",
        version=1,
        title="Which of some adapters has most likely drawn pictures.",
        cites=(_DENOISING, _LAKES),
        params=AttributeImagesParams,
        result=AttributeImagesResult,
        run="interlace.methods.lake.pictures:run",
        estimate=_attributing_images,
        takes={"images": ("images",), "candidates": ("diffusers-lora",)},
        page=_PAGE,
        wrappers=("DiffusionModel",),
    ),
)
