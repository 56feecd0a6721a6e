"""`behaviors.cluster`: what it takes, gives and costs. Nothing here needs torch."""

from importlib import import_module
from math import ceil
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec, Texts
from interlace.methods.shared.circuits.examples import TAKES_SAES, Saes, saes_of
from interlace.methods.shared.circuits.graph import Graph
from interlace.methods.shared.features.described import Description, Reading

_FLOAT = 4  # bytes
_EXPANSION = 8  # features for each dimension, where the dictionary is not known


class ClusterParams(Params):
    """Defaults are those of 2403.19647, section 5 and appendix G, where they fit one machine."""

    data: Texts
    """Texts, an artifact of them, or one of kind `data` whose tensor `tokens` [texts, positions] holds token ids,
    negative after a text's end. A sample is a token of them and what comes before it."""
    saes: Saes | None = None
    """Dictionaries: for vectors of features, and for what carries each cluster. None: vectors are gradients, and there
    are no circuits."""
    vectors: Literal["param_grad", "sae_act", "sae_effect"] = "param_grad"
    """`param_grad`: the gradient of `target` for the weights of all blocks, norms apart, projected. `sae_act`:
    features. `sae_effect`: features times the gradient of `target` for them."""
    target: Literal["loss", "logit"] = "loss"
    """m, whose gradients the vectors are of: `loss`, -log P of the token, which is published; or `logit`, the token's
    over the mean of all tokens'. Where the model is sure of a token, as it is of every sample, the gradient of -log P
    is small, and points from whatever is next to it. Circuits are of -log P."""
    ce_max: float = Field(default=0.3, gt=0)
    """Nats: only tokens that the model foresees this well. Published: .1 to .3."""
    skip_induction: bool = True
    """Leave out tokens whose bigram has been in the text before, which copying would foresee."""
    samples: int = Field(default=1000, ge=4, le=100_000)
    """Drawn by the seed. Published: 100,000 gradients, 8,192 vectors of features."""
    clusters: int = Field(default=10, ge=2, le=1000)
    clustering: Literal["kmeans", "spectral", "neighbors"] = "kmeans"
    """`kmeans` of unit vectors; `spectral` of the angular similarity 1 - arccos(cosine) / pi, up to 8,192 samples;
    ours: `neighbors`, spectral of the graph that joins each unit vector to its ten nearest, for as many."""
    last: int | None = Field(default=None, ge=1, le=64)
    """Vectors of features: of so many last tokens, one behind the other. None: summed over tokens."""
    dims: int = Field(default=30_000, ge=2, le=1_000_000)
    """Of projected gradients."""
    nonzeros: int = Field(default=1, ge=1, le=64)
    """Entries of -1 or 1 in the projection's row of a weight; 4 bytes each. Published: 32."""
    nodes: int = Field(default=12, ge=1, le=200)
    """Features of a cluster's circuit, those with the largest effects."""
    circuit_samples: int = Field(default=16, ge=1, le=1000)
    """Of each cluster, that effects are averaged over."""
    circuits: int = Field(default=50, ge=0, le=1000)
    """Clusters, the largest first, whose circuit is found. Each is kept as an artifact."""
    circuit_nodes: int = Field(default=500, ge=1, le=20_000)
    """Nodes of such an artifact: features and errors, the largest effects first, positions summed."""
    circuit_edges: int = Field(default=0, ge=0, le=20_000)
    """Edges between the `nodes` features that are shown, the largest first. They take a backward for each of these and
    each batch of samples of one length; 0: none."""
    method: Literal["ig", "atp"] = "ig"
    ig_steps: int = Field(default=10, ge=1, le=1000)
    exemplars: int = Field(default=10, ge=1, le=100)
    """Samples of each cluster in the result."""
    reading: Reading = Reading(k=5)
    model_batch: int = Field(default=16, ge=1)
    context: int = Field(default=128, ge=2)
    """Tokens of a text that are used; the rest is cut off."""
    before: int = Field(default=64, ge=1)
    """Tokens of a sample before the one that is foreseen."""

    @model_validator(mode="after")
    def _fits(self) -> "ClusterParams":
        if self.vectors != "param_grad" and self.saes is None:
            raise ValueError(f"vectors are {self.vectors}, which needs saes; param_grad does not.")
        if self.clusters >= self.samples:
            raise ValueError(f"clusters is {self.clusters}; expected less than samples, which is {self.samples}.")
        if self.clustering != "kmeans" and self.samples > _MOST_SPECTRAL:
            raise ValueError(f"samples is {self.samples:,}; spectral clustering takes up to {_MOST_SPECTRAL:,}.")
        return self


_MOST_SPECTRAL = 8192


class Sample(BaseModel):
    """A token that the model foresees, and what it foresees it from."""

    model_config = ConfigDict(frozen=True)

    text: int
    #: Of the token in its text.
    position: int
    before: tuple[str, ...]
    token: str
    #: -log P, nats.
    loss: float


class Node(BaseModel):
    """A feature that carries a cluster."""

    model_config = ConfigDict(frozen=True)

    place: str
    feature: int
    #: What zeroing it does to -log P of the token: summed over tokens, mean over samples; nats.
    effect: float


class Cluster(BaseModel):
    """Samples that are alike; the largest cluster first."""

    model_config = ConfigDict(frozen=True)

    number: int
    size: int
    #: Mean -log P, nats.
    loss: float
    #: The commonest tokens, and how many samples have each.
    tokens: tuple[tuple[str, int], ...]
    exemplars: tuple[Sample, ...]
    nodes: tuple[Node, ...] = ()
    circuit: ArtifactName | None = None
    """An artifact of kind `circuit`: more nodes than are shown here, errors among them, and edges where they were asked
    for. `circuit.edges` and `circuit.evaluate` take it, with `examples` as `data`."""
    edges: tuple[tuple[int, int, float], ...] = ()
    """Source and target, which are rows of `nodes` (target -1: -log P), and weight in nats."""

    def examples(self) -> list[dict[str, str]]:
        """The exemplars as `data` of `circuit.nodes`, `circuit.edges`, `circuit.evaluate`."""
        return [{"clean": "".join(one.before), "answer": one.token} for one in self.exemplars]

    def graph(self) -> Graph:
        """The circuit to draw or to take elsewhere: `.svg()`, `.html()`, `.json()`."""
        rows = [(*_site(one.place), None, one.feature, one.effect) for one in self.nodes]
        return Graph.of_tables(rows, self.edges, metric="-log P")


def _site(place: str) -> tuple[str, int | None]:
    """`SITE.LAYER`, as a splice names its places."""
    site, _, layer = place.rpartition(".")
    return (site, int(layer)) if layer.isdigit() else (place, None)


class ClusterResult(Result):
    """Artifacts are the circuits of the largest clusters."""

    clusters: tuple[Cluster, ...]
    """Each with examples of it, and its circuit where one was asked for."""
    features: tuple[Description, ...] = ()
    """What the texts show of all features that are in some circuit."""
    tokens: int
    """Tokens that went through the model."""

    def page(self) -> str:
        """A report to browse: one HTML page that needs nothing else, no network and no script."""
        written: str = import_module("interlace.methods.behaviors.page").page(self)
        return written


def _batches(samples: int, params: ClusterParams) -> int:
    """Of one length each; lengths are taken to be spread evenly."""
    lengths = min(params.before, params.context)
    there = lengths * (1 - (1 - 1 / lengths) ** samples)
    return min(samples, ceil(there + samples / params.model_batch))


def cost(params: ClusterParams, model: ModelFacts) -> Estimate:
    """Of the texts as far as they are in the params; what an artifact holds is not known here."""
    texts = len(params.data) if isinstance(params.data, list) else 1
    saes = 0 if params.saes is None else len(saes_of(params.saes))
    grads = params.samples if params.vectors == "param_grad" else _batches(params.samples, params)
    steps = params.ig_steps * saes if params.method == "ig" else 1
    found = min(params.clusters, params.circuits)
    circuits = found * _batches(min(params.circuit_samples, params.samples // params.clusters), params) if saes else 0
    edges = circuits * (1 + params.nodes) if params.circuit_edges else 0
    forwards = (
        ceil(texts / params.model_batch) * (2 if saes else 1)
        + grads
        + circuits * (1 + steps)
        + 3 * bool(edges) * circuits
    )
    d_sae = saes * _EXPANSION * model.hidden_size
    width = params.dims if params.vectors == "param_grad" else d_sae * (params.last or 1)
    projection = (1 + params.nonzeros) * model.n_params if params.vectors == "param_grad" else 0
    rows = params.model_batch * params.context
    vectors = 3 * params.samples * width + (params.samples**2 if params.clustering == "spectral" else 0)
    live = rows * (2 * model.vocab_size + 6 * d_sae + 16 * model.n_layers * model.hidden_size)
    samples = params.samples + found * params.circuit_samples * (1 + steps + 3 * bool(edges)) * bool(saes)
    return Estimate(
        forwards=forwards,
        backwards=(grads if params.vectors != "sae_act" else 0) + circuits * steps + edges,
        tokens=texts * params.context * (2 if saes else 1) + samples * min(params.before, params.context),
        peak_bytes=(projection + vectors + live + 2 * d_sae * model.hidden_size) * _FLOAT,
    )


SPECS = (
    Spec(
        name="behaviors.cluster",
        version=1,
        title="Find behaviours that nobody has named: tokens that a model foresees alike, and what carries them.",
        cites=(
            Citation(
                title="Sparse Feature Circuits: Discovering and Editing Interpretable Causal Graphs in Language Models",
                authors="Marks, Rager, Michaud, Belinkov, Bau, Mueller",
                year=2024,
                where="arXiv:2403.19647",
            ),
            Citation(
                title="The Quantization Model of Neural Scaling",
                authors="Michaud, Liu, Girit, Tegmark",
                year=2023,
                where="arXiv:2303.13506",
            ),
        ),
        params=ClusterParams,
        result=ClusterResult,
        run="interlace.methods.behaviors.run:run",
        estimate=cost,
        takes={**TAKES_SAES, "data": ("texts", "data")},
        page="docs/methods/behaviors.md",
        plot="interlace.methods.behaviors.plot:plot",
    ),
)
