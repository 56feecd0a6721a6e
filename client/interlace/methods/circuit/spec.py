"""`circuit.nodes`, `circuit.edges`, `circuit.evaluate`: what they take, give and cost. Nothing here needs torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec
from interlace.methods.shared.circuits.examples import (
    TAKES_SAES,
    Examples,
    MetricName,
    Probing,
    Saes,
    saes_of,
    tokens_of,
)
from interlace.methods.shared.circuits.graph import Graph

_EXPANSION = 8  # features for each dimension: what an artifact holds is not known before
_FLOAT = 4  # bytes


class Asking(Params):
    """What the three share."""

    saes: Saes
    """Artifacts of kind `sae`, at several places at once: a name, a list of names, or of `{"sae", "site", "layer"}`."""
    data: Examples
    head: Probing | None = None
    """Of `metric: probe_logit`."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rows of a forward."""


class NodesParams(Asking):
    """Marks et al. 2024 (2403.19647), section 3.1 and appendix A. Without `patch` in the examples, effects are of
    ablation to 0."""

    metric: MetricName = "logit_diff"
    """`logit_diff`: logit(answer) - logit(patch_answer) at the last token; `logprob` and `neg_logprob` of the answer;
    `probe_logit` of a head."""
    method: Literal["atp", "ig", "exact"] = "ig"
    """`atp` is one gradient, `ig` the mean of `ig_steps` of them, a place at a time; `exact` patches each node."""
    ig_steps: Annotated[int, Field(ge=1, le=1000)] = 10
    ig_endpoints: Literal["clean_first", "patch_first", "midpoint"] = "clean_first"
    """Which end the points of `ig` include: clean (the paper's code), patch (the paper, Eq. 4), or neither."""
    ig_reach: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How much of the way to the patch the points of `ig` go. 1 is the paper's: effects sum to patching a whole place.
    Less (.25) is nearer to patching one node by itself, where the effects of all do not add up to the whole."""
    aggregate: Literal["none", "sum_pos"] = "none"
    """`none` keeps positions, for prompts of one template and one number of tokens; `sum_pos` sums effects over
    positions, where opposite signs cancel. `exact` then patches a feature at all positions at once."""
    topk: Annotated[int, Field(ge=1, le=20_000)] = 1000
    """Nodes that are kept, the largest first."""
    threshold: Annotated[float, Field(ge=0)] = 0.0
    """Nodes of a smaller effect are not kept (T_N), in the metric's unit."""
    check: Annotated[int, Field(ge=0, le=10_000)] = 24
    """Active nodes, drawn by the seed, that `atp` and `ig` are held against exact patching on."""
    budget: Annotated[int, Field(ge=1)] = 100_000
    """Patched rows: the most that exact patching may take."""


class NodesResult(Result):
    """Tables `nodes` (site, layer, position, feature, effect: the largest first; feature -1 is the error, position None
    a sum), `sites` (what each dictionary explains and the effects at it), `examples`, and `checked` (estimate, exact).
    Metrics `m_clean`, `total_effect`; of an estimate `pearson`, `spearman` and `slope` on exact effects."""

    circuit: ArtifactName
    """An artifact of kind `circuit`, without edges."""
    rows: int
    """Patched rows that exact patching took."""
    tokens: list[str]
    """Of the first example, where positions are kept."""
    metric_name: str
    """What effects are on."""

    def graph(self) -> Graph:
        """To draw or to take elsewhere: `.svg()`, `.html()`, `.json()`."""
        return Graph.of_tables(self.table("nodes").rows, (), self.tokens, self.metric_name)


class EdgesParams(Asking):
    """Section 3.1 and appendix A.1: the effect of a node on the metric by way of one later node, linear in both."""

    nodes: ArtifactName
    """An artifact of kind `circuit`, that `circuit.nodes` made with the same dictionaries."""
    node_threshold: Annotated[float, Field(ge=0)] = 0.0
    """Nodes of a smaller effect are left out (T_N)."""
    max_nodes: Annotated[int, Field(ge=1, le=5000)] = 100
    """The largest nodes that edges are between: one backward of each batch for each."""
    threshold: Annotated[float, Field(ge=0)] = 0.0
    """Edges of a smaller weight are not kept (T_E)."""
    topk: Annotated[int, Field(ge=1, le=100_000)] = 2000
    """Edges that are kept, the largest first."""


class EdgesResult(Result):
    """Tables `nodes` (as of `circuit.nodes`) and `edges` (source, target: rows of `nodes`, -1 the metric; weight)."""

    circuit: ArtifactName
    """An artifact of kind `circuit`, with edges."""
    tokens: list[str]
    """Of the first example, where positions are kept."""
    metric_name: str
    """What effects are on."""

    def graph(self) -> Graph:
        """To draw or to take elsewhere: `.svg()`, `.html()`, `.json()`."""
        rows = self.table("nodes").rows
        return Graph.of_tables(rows, self.table("edges").rows, self.tokens, self.metric_name)


class EvaluateParams(Asking):
    """Section 3.2: how much of what the model does is left when all but a circuit is ablated (faithfulness), and when
    the circuit is (completeness)."""

    nodes: ArtifactName
    """An artifact of kind `circuit`."""
    thresholds: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1, max_length=64)] | None = None
    """Nodes of at least each of these effects, in the metric's unit."""
    sizes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=64)] | None = None
    """In their place, so many of the largest. Neither: all nodes."""
    ablation: Literal["mean", "zero", "resample"] = "mean"
    """What nodes outside become: their mean over the patch prompts (the clean ones where there are none), at each
    position where all examples have as many; 0; or what they are in their own patch prompt."""
    errors: Literal["default", "keep", "remove", "resid_only"] = "default"
    """Errors are nodes like others; are all kept; all ablated; or ablated but at `resid_post`."""
    start_layer: Annotated[int, Field(ge=0)] | None = None
    """Places in blocks before it, and the embeddings, are given for free: the paper's are the first third. None: none.
    """
    complement: bool = True
    """Whether the model without the circuit is measured, too."""
    controls: Annotated[int, Field(ge=0, le=100)] = 3
    """How many sets of as many active nodes, drawn by the seed, are measured beside each circuit."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.thresholds is not None and self.sizes is not None:
            raise ValueError("`thresholds` and `sizes` are two ways to say the same; give one of them")
        return self


class EvaluateResult(Result):
    """Table `faithfulness`: threshold, size, nodes, features, errors, share (of the active nodes), m, faithfulness with
    a 95 % interval over examples, completeness, random (mean of the controls), random_most. Metrics `m_model`,
    `m_empty`, `active_nodes`."""

    metric_name: str
    """What effects are on."""


def nodes_cost(params: NodesParams, facts: ModelFacts) -> Estimate:
    places, n, tokens = len(saes_of(params.saes)), len(params.data), tokens_of(params.data)
    groups = -(-n // params.batch)
    per_batch, backwards = _runs(params) + places, 0  # every place is patched whole, too
    if params.method != "exact":
        backwards = 1 if params.method == "atp" else params.ig_steps * places
        checked = params.check if n else 0
        rows = checked * n
    else:  # as if a twentieth of the features were on
        rows = min(params.budget, n * places * tokens * (1 + _EXPANSION * facts.hidden_size // 20))
    forwards = groups * (per_batch + backwards) + -(-rows // params.batch) + (_runs(params) * groups if rows else 0)
    return _estimate(params.batch, places, tokens, facts, forwards, groups * backwards)


def edges_cost(params: EdgesParams, facts: ModelFacts) -> Estimate:
    groups, tokens = -(-len(params.data) // params.batch), tokens_of(params.data)
    backwards = groups * (2 + params.max_nodes)  # at most: nodes at the first place have none
    return _estimate(params.batch, len(saes_of(params.saes)), tokens, facts, (_runs(params) + 2) * groups, backwards)


def evaluate_cost(params: EvaluateParams, facts: ModelFacts) -> Estimate:
    groups, tokens = -(-len(params.data) // params.batch), tokens_of(params.data)
    circuits = len(params.thresholds or params.sizes or [0])
    forwards = groups * (_runs(params) + 1 + circuits * (1 + params.complement + params.controls))
    return _estimate(params.batch, len(saes_of(params.saes)), tokens, facts, forwards, 0)


def _runs(params: Asking) -> int:
    """Forwards of a batch as it is."""
    return 1 if params.data[0].patch is None else 2


def _estimate(batch: int, places: int, tokens: int, facts: ModelFacts, forwards: int, backwards: int) -> Estimate:
    width = facts.hidden_size
    values = places * batch * tokens * (_EXPANSION + 1) * width  # of one run
    weights = places * 2 * _EXPANSION * width * width
    graph = batch * tokens * width * facts.n_layers * 16 if backwards else 0
    logits = batch * facts.vocab_size
    return Estimate(
        forwards=forwards,
        backwards=backwards,
        tokens=forwards * batch * tokens,
        peak_bytes=_FLOAT * (6 * values + weights + graph + 2 * logits),
    )


_CITES = (
    Citation(
        title="Sparse Feature Circuits: Discovering and Editing Interpretable Causal Graphs in Language Models",
        authors="Marks, Rager, Michaud, Belinkov, Bau, Mueller",
        year=2024,
        where="arXiv:2403.19647",
    ),
)
_HEAD = {"head.probe": ("probe",)}

SPECS = (
    Spec(
        name="circuit.nodes",
        version=1,
        title="Which features of spliced dictionaries carry a behaviour, by gradients or by patching each.",
        cites=_CITES,
        params=NodesParams,
        result=NodesResult,
        run="interlace.methods.circuit.nodes:run",
        estimate=nodes_cost,
        takes={**TAKES_SAES, **_HEAD},
        makes=("circuit",),
        page="docs/methods/circuit.md",
        plot="interlace.methods.circuit.plot:graph",
    ),
    Spec(
        name="circuit.edges",
        version=1,
        title="How the nodes of a circuit act on each other.",
        cites=_CITES,
        params=EdgesParams,
        result=EdgesResult,
        run="interlace.methods.circuit.edges:run",
        estimate=edges_cost,
        takes={**TAKES_SAES, **_HEAD, "nodes": ("circuit",)},
        makes=("circuit",),
        page="docs/methods/circuit.md",
        plot="interlace.methods.circuit.plot:graph",
    ),
    Spec(
        name="circuit.evaluate",
        version=1,
        title="How much of a behaviour a circuit keeps, how much is left without it, and what random nodes keep.",
        cites=_CITES,
        params=EvaluateParams,
        result=EvaluateResult,
        run="interlace.methods.circuit.evaluate:run",
        estimate=evaluate_cost,
        takes={**TAKES_SAES, **_HEAD, "nodes": ("circuit",)},
        page="docs/methods/circuit.md",
        plot="interlace.methods.circuit.plot:curves",
    ),
)
