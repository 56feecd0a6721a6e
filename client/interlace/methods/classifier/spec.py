"""`classifier.shift`: what it takes, gives and costs. Nothing here needs torch."""

from math import ceil
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec, Texts
from interlace.methods.shared.circuits.examples import TAKES_SAES, Saes, saes_of
from interlace.methods.shared.features.described import Description, Reading

_FLOAT = 4  # bytes
_EXPANSION = 8  # features for each dimension, where the dictionary is not known
_MOST = 100_000  # labels
Labels = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=_MOST)]


class Marked(Params):
    """A feature, as `candidates` of a first call name it."""

    place: str = Field(max_length=48)
    """`SITE.LAYER`, such as `resid_post.3`; `embed`."""
    feature: int = Field(ge=0)


class ShiftParams(Params):
    """Defaults are those of 2403.19647, section 4, where it says them."""

    saes: Saes
    ambiguous: Texts
    """What the head is trained on, where the label and the cue always agree: texts, an artifact of them, or one of kind
    `data` whose tensor `tokens` [texts, positions] holds token ids, negative after a text's end."""
    labels: Labels = Field(min_length=2)
    """The class of each of these texts."""
    balanced: Texts | None = None
    """What accuracies are measured on, where label and cue are independent. None: they are not measured."""
    intended: Labels = Field(default_factory=list)
    """The class of each of the balanced texts by what it should be told by."""
    spurious: Labels = Field(default_factory=list)
    """... and the class that the cue speaks for."""
    oracle: Texts | None = None
    """Balanced texts to train a head on that shows what could be had; others than `balanced`."""
    oracle_labels: Labels = Field(default_factory=list)
    layer: int = Field(ge=0)
    """The head reads the mean over a text's tokens of the states here."""
    site: str = "resid_post"
    skip_first: int = Field(default=0, ge=0)
    """Tokens at a text's beginning that are not in the mean (such as a BOS token)."""
    lr: float = Field(default=0.01, gt=0)
    """Of AdamW."""
    epochs: int = Field(default=1, ge=1, le=10_000)
    head_batch: int = Field(default=32, ge=1)
    """Texts in a step of the head. The paper does not say."""
    head: ArtifactName | None = None
    """The head of an earlier call. None: it is trained, and the same again for the same seed."""
    metric: Literal["neg_logprob", "probe_logit"] = "neg_logprob"
    """m: minus the log of what the head gives the text's class, or the class's logit."""
    method: Literal["ig", "atp"] = "ig"
    ig_steps: int = Field(default=10, ge=1, le=1000)
    endpoints: Literal["clean_first", "patch_first", "midpoint"] = "clean_first"
    """Where the points of `ig` are: `clean_first` is the paper's code, `patch_first` its text."""
    examples: int = Field(default=100, ge=1, le=10_000)
    """Ambiguous texts that effects are averaged over, drawn by the seed."""
    candidates: int = Field(default=64, ge=1, le=512)
    """Features that are told of, those with the largest effects."""
    reading: Reading = Reading(k=12)
    ablate: list[Marked] | None = Field(default=None, max_length=4096)
    """The features that somebody has found to be beside the point: 0 at all tokens, the error kept. None: candidates
    are listed, and nothing is ablated."""
    controls: int = Field(default=3, ge=1, le=20)
    """Sets of as many random features, of those that are on in the examples and not named."""
    model_batch: int = Field(default=16, ge=1)
    """Texts in a forward of the model."""
    context: int = Field(default=128, ge=1)
    """Tokens of a text that are used; the rest is cut off."""

    @model_validator(mode="after")
    def _fits(self) -> "ShiftParams":
        if len(set(self.labels)) < 2:
            raise ValueError(f"labels has one class, {self.labels[0]!r}; expected two or more.")
        if self.balanced is not None and (not self.intended or len(self.intended) != len(self.spurious)):
            raise ValueError("balanced needs intended and spurious, one class each for every text of it.")
        if self.oracle is not None and not self.oracle_labels:
            raise ValueError("oracle needs oracle_labels, one for every text of it.")
        if self.ablate is not None and (self.balanced is None or not self.ablate):
            raise ValueError(
                "ablate names features whose removal is measured on balanced; expected both, or no ablate."
            )
        return self


class Candidate(BaseModel):
    """A feature that the head's answers depend on, and what it shows to whoever is to say what it is for."""

    model_config = ConfigDict(frozen=True)

    place: str
    feature: int
    #: On m: summed over tokens, mean over examples.
    effect: float
    shown: Description


class ShiftResult(Result):
    candidates: tuple[Candidate, ...]
    """The largest effects first; none in a call with `ablate`."""
    classes: tuple[str, ...]
    """The labels, in the order of the head's rows."""
    head: ArtifactName
    """Kind `probe`: for `head` of a second call, and for `circuit.nodes` with the metric `probe_logit`."""
    ablated: tuple[Marked, ...] = ()
    """The features that a call with `ablate` removed."""
    tokens: int
    """Tokens that went through the model."""


def cost(params: ShiftParams, model: ModelFacts) -> Estimate:
    """Of the texts as far as they are in the params; what an artifact holds is taken from its labels."""
    train, judged, oracle = len(params.labels), len(params.intended), len(params.oracle_labels)
    saes = len(saes_of(params.saes))
    some = min(params.examples, train)
    if params.ablate is None:
        steps = params.ig_steps * saes if params.method == "ig" else 1
        texts, backwards = train * 2 + judged + oracle + some * (1 + steps), some * steps
    else:
        ways = 2 + params.controls
        texts, backwards = ways * (train + judged) + oracle + some, 0
    d_sae = _EXPANSION * model.hidden_size
    rows = params.model_batch * params.context
    weights = 2 * saes * d_sae * model.hidden_size
    live = rows * (model.vocab_size + saes * 6 * d_sae + 16 * model.n_layers * model.hidden_size)
    return Estimate(
        forwards=ceil(texts / params.model_batch),
        backwards=ceil(backwards / params.model_batch),
        tokens=texts * params.context,
        peak_bytes=(weights + live) * _FLOAT,
    )


SPECS = (
    Spec(
        name="classifier.shift",
        version=1,
        title="Train a head on an ambiguous set, find the features that it looks at, ablate those beside the point.",
        cites=(
            Citation(
                title="Sparse Feature Circuits: Discovering and Editing Interpretable Causal Graphs in Language Models",
                authors="Marks, Rager, Michaud, Belinkov, Bau, Mueller",
                year=2024,
                where="arXiv:2403.19647",
            ),
        ),
        params=ShiftParams,
        result=ShiftResult,
        run="interlace.methods.classifier.run:run",
        estimate=cost,
        takes={
            **TAKES_SAES,
            "ambiguous": ("texts", "data"),
            "balanced": ("texts", "data"),
            "oracle": ("texts", "data"),
            "head": ("probe",),
        },
        makes=("probe",),
        page="docs/methods/shift.md",
        plot="interlace.methods.classifier.plot:plot",
    ),
)
