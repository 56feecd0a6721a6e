"""`attribute.images`: which images taught a model to draw one, by unlearning the one, with a plain loss beside it.

Sheng-Yu Wang, Aaron Hertzmann, Alexei A. Efros, Jun-Yan Zhu, Richard Zhang, "Data Attribution for Text-to-Image Models
by Unlearning Synthesized Images", NeurIPS 2024, arXiv:2406.09408.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec
from interlace.methods.shared.denoising.denoiser_cost import bytes_backward, images_in, peak, positions, square
from interlace.methods.shared.pictures import Picture

CAVEAT = (
    "A high score says that forgetting the query makes the candidate harder to draw. It is no proof that the candidate "
    "taught it: compare with the baselines and the controls beside it."
)
_CANDIDATES = 400  # of an artifact whose size the estimate does not know
_QUERIES = 4


class AttributeParams(Params):
    """theta <- theta + (alpha / N) F^-1 grad L(query, theta), F the diagonal Fisher information over the candidates;
    score = L(candidate, theta after) - L(candidate, theta before), on the same noise (Eq. 5 and 6)."""

    queries: ArtifactName
    """Of kind `images`: generated images, each with its prompt as caption."""
    candidates: ArtifactName
    """Of kind `images`: those that may have taught them, captioned as they were in training."""
    adapter: ArtifactName | None = None
    """Of kind `diffusers-lora`, added to the weights while the method runs: explain a customised model with it."""
    known: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Places of the candidates that did teach it, where that is known: average precision is against them."""
    members: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Places of the candidates that are like the known ones and taught nothing: AUC is against them."""
    controls: ArtifactName | None = None
    """Of kind `images`: queries that the candidates in question have not taught. What is found for them, too, is no
    answer to a query."""
    subset: Literal["cross_kv", "cross", "attention"] = "cross_kv"
    """Weights that are moved. Published: keys and values of cross-attention; all weights gave less."""
    alpha: Annotated[float, Field(gt=0, le=1e9)] = 0.01
    """The step, over N. Published: 0.01 in one step, with N of 118,000; for customised models 0.1 and 100 steps. With
    few candidates it must be far smaller: look at `weights_moved`."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 1
    n: Annotated[int, Field(ge=1)] | None = None
    """N, images in training; None: how many candidates there are."""
    damping: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Ours: this share of F's mean is added to F, whose zeros would divide."""
    query_draws: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """Of noise and t, for a query's gradient in each step. Published: 50,000."""
    fisher_draws: Annotated[int, Field(ge=1, le=1000)] = 5
    """Of noise and t, for each candidate. Published: 5."""
    times: Annotated[int, Field(ge=1, le=1000)] = 20
    """Evenly spaced t at which a candidate's loss is taken. Published: 20; 10 for customised models."""
    batch: Annotated[int, Field(ge=1, le=1024)] = 32
    top: Annotated[int, Field(ge=1, le=100)] = 8
    """How many are shown and compared for each query."""
    resolution: Annotated[int, Field(ge=8, le=2048)] | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if both := set(self.known) & set(self.members):
            raise ValueError(f"candidate {min(both)} is in known and in members; the two are apart")
        if self.members and not self.known:
            raise ValueError("members is given, and known is not: AUC is of one against the other")
        return self


class AttributeResult(Result):
    """Table `ranked` (query, rank, candidate, score, z, loss_rank, pixel_rank, sha256): the first `top` for each query,
    with the places that the two baselines give them: `loss` (a candidate's own loss before anything, which knows no
    query) and `pixels` (distance to the query). Metrics: `query_overlap` (share of the top that two queries have in
    common), `weights_moved` (by how much of their norm, for a query), `loss_overlap` (of the top with the loss
    baseline's); with `known` also `known_in_top` for the splits `queries` and `controls`, and `average_precision` and
    `auc` for `unlearning`, `loss`, `pixels`, `controls`. An artifact of kind `data`: `scores` and `pixels` [queries and
    controls, candidates], `loss` [candidates]."""

    caveat: str = CAVEAT
    """What the scores do not mean."""
    pictures: tuple[Picture, ...] = ()
    """Each query beside those that score highest, as PNG."""


def estimate(params: AttributeParams, facts: ModelFacts) -> Estimate:
    """Of as many candidates and queries as there are; 400 and 4 where it is not known."""
    queries, candidates = images_in(facts, params.queries, _QUERIES), images_in(facts, params.candidates, _CANDIDATES)
    if params.controls is not None:
        queries += images_in(facts, params.controls, _QUERIES)
    losses, fisher = params.times * (1 + queries), candidates * params.fisher_draws
    asked = queries * params.steps
    moves = -(-fisher // params.batch) + asked * -(-params.query_draws // params.batch)
    size = square(params.resolution)
    return Estimate(
        forwards=losses * -(-candidates // params.batch) + moves,
        backwards=moves,
        tokens=positions(facts, size) * (losses * candidates + fisher + asked * params.query_draws),
        peak_bytes=peak(facts, bytes_backward(facts, params.batch, size), params.batch, size)
        + facts.n_params * facts.weight_bytes // 4,
    )


SPECS = (
    Spec(
        name="attribute.images",
        version=1,
        title="Rank the images that may have taught a model to draw one, by unlearning it, with baselines beside.",
        cites=(
            Citation(
                title="Data Attribution for Text-to-Image Models by Unlearning Synthesized Images",
                authors="Sheng-Yu Wang, Aaron Hertzmann, Alexei A. Efros, Jun-Yan Zhu, Richard Zhang",
                year=2024,
                where="arXiv:2406.09408",
            ),
        ),
        params=AttributeParams,
        result=AttributeResult,
        run="interlace.methods.attribution.run:run",
        estimate=estimate,
        takes={
            "queries": ("images",),
            "candidates": ("images",),
            "controls": ("images",),
            "adapter": ("diffusers-lora",),
        },
        makes=("data",),
        page="docs/methods/attribution.md",
        plot="interlace.methods.attribution.plot:plot",
        wrappers=("DiffusionModel",),
    ),
)
