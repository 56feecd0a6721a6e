"""`mediate`: one verb for mediator x search x effect, each estimate held against exact patching; `mediate.paths`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec
from interlace.methods.mediate.pair_spec import Heads, Layers, Pair, tokens_of
from interlace.methods.mediate.path_spec import PATHS

MediatorSite = Literal[
    "resid_post", "attn_out", "mlp_out", "mlp_act", "mixer_out", "mixer_act", "mixer_in.x", "mixer_in.gate", "ssm_out"
]
_FLOAT = 4  # bytes


class Parts(Params):
    """What sites of blocks give, token by token."""

    family: Literal["parts"] = "parts"
    sites: Annotated[tuple[MediatorSite, ...], Field(min_length=1)] = ("resid_post",)
    layers: Layers | None = None
    """Blocks from 0; default: all."""
    positions: Annotated[tuple[int, ...], Field(min_length=1)] | Literal["each", "all"] = "each"
    """Tokens, negative ones from the end; `each`: every one by itself; `all`: the whole row at once."""


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


class Features(Params):
    """Features of a sparse dictionary of one site, and what it leaves over (its error, which is number -1)."""

    family: Literal["features"]
    sae: ArtifactName
    """Of the kind `sae`."""
    site: MediatorSite | None = None
    """Whose states it is of; default: what the artifact says."""
    layer: Annotated[int, Field(ge=0)] | None = None
    position: int | Literal["all"] = "all"
    most: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Features that are looked at: those whose values differ most between base and source, in the pairs' mean."""


class Suite(Params):
    """Pairs of something else, which an intervention on the mediators should leave alone."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    pairs: Annotated[list[Pair], Field(min_length=2, max_length=5000)]
    """Of one number of tokens; where mediators are single tokens, of that of the main pairs."""


Mediator = Annotated[Parts | Heads | Neurons | Features | Subspace, Field(discriminator="family")]


class MediateParams(Params):
    """Mueller et al. 2024 have the survey, Geiger et al. 2024 the subspace search (DAS), Nanda 2023 and Sundararajan et
    al. 2017 the gradients, De Cao et al. 2020 and Davies et al. 2023 the masks (DBM). m is logit(answer) -
    logit(source_answer) at the last token, in the base and the source."""

    pairs: Annotated[list[Pair], Field(min_length=2, max_length=5000)]
    mediator: Mediator = Parts()
    search: Literal["exhaustive", "atp", "ig", "das", "dbm"] = "exhaustive"
    """`exhaustive` patches each mediator; `atp` is one gradient, `ig` the mean of `ig_steps` of them on the way from
    base to source; `das` learns a subspace, `dbm` a set of mediators, by a mask that is sparse."""
    effect: Literal["NIE", "NDE"] = "NIE"
    """NIE: m(base, the mediator as in the source) - m(base). NDE: m(source, the mediator as in the base) - m(base). The
    total effect m(source) - m(base) is always told."""
    ig_steps: Annotated[int, Field(ge=1, le=1000)] = 10
    check: Annotated[int, Field(ge=2, le=10_000)] = 24
    """Mediators, drawn by the seed, that `atp` and `ig` are held against exact patching on."""
    budget: Annotated[int, Field(ge=1)] = 100_000
    """Patched rows: the most that exact patching may take."""
    steps: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Of `das` and `dbm`: updates, each of `batch` pairs."""
    lr: Annotated[float, Field(gt=0, le=10)] = 0.02
    """Of `das` and `dbm`, Adam's."""
    train: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of `das` and `dbm`: the share of pairs that it learns from; accuracy is of the others."""
    sparsity: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Of `dbm`: the weight of the mask's mean in the loss, reached from 0 in equal steps."""
    temperature: tuple[Annotated[float, Field(gt=0, le=100)], Annotated[float, Field(gt=0, le=100)]] = (1.0, 0.1)
    """Of `dbm`: the sigmoid's, at the first and at the last step; between them each step is the same factor."""
    random_weights: bool = True
    """Of `das` and `dbm`: whether the same search is done in a copy of the model whose weights are random ones."""
    off_target: Annotated[tuple[Suite, ...], Field(max_length=20)] = ()
    """What the mediators should not carry. Selectivity is the share of the total effect that a mediator moves of
    `pairs`, minus the share that it moves here."""
    selected: Annotated[int, Field(ge=1, le=1000)] = 8
    """Mediators, the largest first, whose selectivity is measured by exact patching; of `das` and `dbm` all at once."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows of a forward."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.search == "das") != isinstance(self.mediator, Subspace):
            raise ValueError("`search: das` goes with `mediator.family: subspace`, and nothing else does")
        if self.effect == "NDE" and (self.off_target or self.search in ("das", "dbm")):
            raise ValueError("`off_target`, `search: das` and `search: dbm` go with `effect: NIE`")
        return self


class MediateResult(Result):
    """Tables `effects` (site, layer, position, unit, estimate, low, high, exact, n: the largest first) and `pairs`;
    metrics `total_effect` and, of an approximation, `ranking_quality` (Spearman) and `slope` against exact patching. Of
    `das` and `dbm`: metrics `iia` by split, and an artifact of kind `data`: `basis` [k, width], or `mask` [units] whose
    rows the table `mask` names. With `off_target`: metric `selectivity` by suite, and a table of it."""

    rows: int
    """Patched rows that exact patching took."""


def estimate(params: MediateParams, facts: ModelFacts) -> Estimate:
    n, mediator, search = len(params.pairs), params.mediator, params.search
    length = tokens_of(params.pairs)
    layers = getattr(mediator, "layers", None)
    places = facts.n_layers if layers is None else len(layers)
    if isinstance(mediator, Parts):
        units = length if mediator.positions == "each" else 1
        units = len(mediator.positions) if isinstance(mediator.positions, tuple) else units
        places *= len(mediator.sites)
    elif isinstance(mediator, Features):
        places, units = 1, mediator.most + 1
    else:
        units = 4 * facts.hidden_size if isinstance(mediator, Neurons) else max(1, facts.hidden_size // 64)
    learns = search in ("das", "dbm")
    exact = places * units if search == "exhaustive" else min(params.check, places * units)
    exact = 8 if learns else exact
    suites = sum(len(one.pairs) * (1 if learns else params.selected) for one in params.off_target)
    gradients = {"atp": 1, "ig": params.ig_steps * places}.get(search, 0)
    searches = params.steps * (1 + params.random_weights) if learns else 0
    backwards = gradients * -(-n // params.batch) + searches
    forwards = (2 + exact) * -(-n // params.batch) + backwards + (searches if search == "dbm" else 0)
    forwards += -(-suites // params.batch)
    rows = min(n, params.batch)
    copied = facts.n_params * facts.weight_bytes if learns and params.random_weights else 0
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
        title="What carries an effect: parts, heads, neurons, features, a subspace; by patching, gradients or search.",
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
            Citation(
                title="Discovering Variable Binding Circuitry with Desiderata",
                authors="Davies, Nadeau, Prakash, Shaham, Bau",
                year=2023,
                where="arXiv:2307.03637",
            ),
        ),
        params=MediateParams,
        result=MediateResult,
        run="interlace.methods.mediate.run:run",
        estimate=estimate,
        takes={"mediator.basis": ("data",), "mediator.sae": ("sae",)},
        makes=("data",),
        page="docs/methods/mediate.md",
        plot="interlace.methods.mediate.plot:plot",
    ),
    PATHS,
)
