"""`mediate`: one verb for mediator x search x effect, each estimate held against exact patching."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec

MediatorSite = Literal[
    "resid_post", "attn_out", "mlp_out", "mlp_act", "mixer_out", "mixer_act", "mixer_in.x", "mixer_in.gate", "ssm_out"
]
Layers = Annotated[list[int], Field(min_length=1)]
_TOKENS_A_CHARACTER = 0.4
_FLOAT = 4  # bytes


class Pair(Params):
    """Two prompts of one number of tokens, each with what the model should say."""

    base: Annotated[str, Field(min_length=1, max_length=4000)]
    source: Annotated[str, Field(min_length=1, max_length=4000)]
    answer: Annotated[str, Field(min_length=1, max_length=200)]
    """To the base; only its first token counts."""
    source_answer: Annotated[str, Field(min_length=1, max_length=200)]


class Parts(Params):
    """What sites of blocks give, token by token."""

    family: Literal["parts"] = "parts"
    sites: Annotated[tuple[MediatorSite, ...], Field(min_length=1)] = ("resid_post",)
    layers: Layers | None = None
    """Blocks from 0; default: all."""
    positions: Annotated[tuple[int, ...], Field(min_length=1)] | Literal["each", "all"] = "each"
    """Tokens, negative ones from the end; `each`: every one by itself; `all`: the whole row at once."""


class Heads(Params):
    """Attention heads: what each brings to its block's output projection, at all tokens."""

    family: Literal["heads"]
    layers: Layers | None = None


class Neurons(Params):
    """Single numbers of a site, at one token."""

    family: Literal["neurons"]
    site: Literal["mlp_act", "mixer_act", "resid_post"] = "mlp_act"
    layers: Layers | None = None
    position: int = -1


class Subspace(Params):
    """k directions of a site at one token."""

    family: Literal["subspace"]
    site: Literal["resid_post", "attn_out", "mlp_out", "mixer_out"] = "resid_post"
    layer: Annotated[int, Field(ge=0)]
    position: int = -1
    k: Annotated[int, Field(ge=1, le=4096)] = 1
    basis: ArtifactName | None = None
    """A `data` artifact with `basis` [k, width], whose rows are measured in place of a search."""


class MediateParams(Params):
    """Mueller et al. 2024 have the survey, Geiger et al. 2024 the subspace search (DAS), Nanda 2023 and Sundararajan et
    al. 2017 the gradients. m is logit(answer) - logit(source_answer) at the last token, in the base and the source."""

    pairs: Annotated[list[Pair], Field(min_length=2, max_length=5000)]
    mediator: Annotated[Parts | Heads | Neurons | Subspace, Field(discriminator="family")] = Parts()
    search: Literal["exhaustive", "atp", "ig", "das"] = "exhaustive"
    """`exhaustive` patches each mediator; `atp` is one gradient, `ig` the mean of `ig_steps` of them on the way from
    base to source; `das` learns a subspace."""
    effect: Literal["NIE", "NDE"] = "NIE"
    """NIE: m(base, the mediator as in the source) - m(base). NDE: m(source, the mediator as in the base) - m(base). The
    total effect m(source) - m(base) is always told."""
    ig_steps: Annotated[int, Field(ge=1, le=1000)] = 10
    check: Annotated[int, Field(ge=2, le=10_000)] = 24
    """Mediators, drawn by the seed, that `atp` and `ig` are held against exact patching on."""
    budget: Annotated[int, Field(ge=1)] = 100_000
    """Patched rows: the most that exact patching may take."""
    steps: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Of `das`: updates, each of `batch` pairs."""
    lr: Annotated[float, Field(gt=0, le=10)] = 0.02
    """Of `das`, Adam's."""
    train: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of `das`: the share of pairs that it learns from; accuracy is of the others."""
    random_weights: bool = True
    """Of `das`: whether the same search is done in a copy of the model whose weights are random ones."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows of a forward."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.search == "das") != isinstance(self.mediator, Subspace):
            raise ValueError("`search: das` goes with `mediator.family: subspace`, and nothing else does")
        return self


class MediateResult(Result):
    """Tables `effects` (site, layer, position, unit, estimate, low, high, exact, n: the largest first) and `pairs`;
    metrics `total_effect` and, of an approximation, `ranking_quality` (Spearman) and `slope` against exact patching. Of
    `das`: metrics `iia` by split, and an artifact of kind `data` with `basis` [k, width]."""

    rows: int
    """Patched rows that exact patching took."""


def estimate(params: MediateParams, facts: ModelFacts) -> Estimate:
    n = len(params.pairs)
    length = int(max(_TOKENS_A_CHARACTER * max(len(one.base), len(one.source)) for one in params.pairs)) + 1
    layers = getattr(params.mediator, "layers", None)
    blocks = facts.n_layers if layers is None else len(layers)
    if isinstance(params.mediator, Parts):
        tokens = length if params.mediator.positions == "each" else 1
        tokens = len(params.mediator.positions) if isinstance(params.mediator.positions, tuple) else tokens
        places, units = blocks * len(params.mediator.sites), tokens
    elif isinstance(params.mediator, Neurons):
        places, units = blocks, 4 * facts.hidden_size
    else:
        places, units = blocks, max(1, facts.hidden_size // 64)
    exact = places * units if params.search == "exhaustive" else min(params.check, places * units)
    if params.search == "das":
        exact = 8
    gradients = {"exhaustive": 0, "atp": 1, "ig": params.ig_steps * places, "das": 0}[params.search]
    searches = params.steps * (1 + params.random_weights) if params.search == "das" else 0
    backwards = gradients * -(-n // params.batch) + searches
    forwards = (2 + exact) * -(-n // params.batch) + backwards
    rows = min(n, params.batch)
    copied = facts.n_params * facts.weight_bytes if params.search == "das" and params.random_weights else 0
    return Estimate(
        forwards=forwards,
        backwards=backwards,
        tokens=forwards * rows * length,
        peak_bytes=copied + _FLOAT * rows * length * facts.hidden_size * (places * 3 + facts.n_layers * 16),
    )


SPECS = (
    Spec(
        name="mediate",
        version=1,
        title="What carries an effect: parts, heads, neurons or a subspace, by patching, by gradients or by search.",
        cites=(
            Citation(
                title="The Quest for the Right Mediator: A History, Survey, and Theoretical Grounding of Causal "
                "Interpretability",
                authors="Mueller, Brinkmann, Li, Marks, Pal, Prakash, Rager, Sankaranarayanan and others",
                year=2024,
                where="arXiv:2408.01416",
            ),
            Citation(
                title="Finding Alignments Between Interpretable Causal Variables and Distributed Neural "
                "Representations",
                authors="Geiger, Wu, Potts, Icard, Goodman",
                year=2024,
                where="arXiv:2303.02536",
            ),
        ),
        params=MediateParams,
        result=MediateResult,
        run="interlace.methods.mediate.run:run",
        estimate=estimate,
        takes={"mediator.basis": ("data",)},
        makes=("data",),
        page="docs/methods/mediate.md",
        plot="interlace.methods.mediate.plot:plot",
    ),
)
