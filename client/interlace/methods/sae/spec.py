"""`sae.train` and `sae.eval`: what they take, give and cost. Nothing here needs torch."""

from math import ceil
from typing import Annotated, Literal

from pydantic import Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec, Texts

Architecture = Literal["standard", "gated", "topk", "batchtopk", "jumprelu"]
_FLOAT = 4  # bytes
_EXPANSION = 8  # features for each dimension of the activations: the paper's smaller dictionaries


class L1(Params):
    """A penalty on the sum of the features (2408.00113, Eq. 8)."""

    type: Literal["l1"] = "l1"
    weight: float = Field(default=0.06, gt=0)
    """Lambda. Published sweeps on Othello: .035 to .08 (standard), 1.0 to 2.0 (gated)."""


class PAnneal(Params):
    """A penalty on the sum of the features to the power p, which falls in steps (2408.00113, section 4)."""

    type: Literal["p_anneal"] = "p_anneal"
    weight: float = Field(default=0.04, gt=0)
    """Lambda at the start; each change of p scales it, so that the penalty does not jump. Othello: .025 to .05."""
    p_start: float = Field(default=1.0, gt=0, le=1)
    p_end: float = Field(default=0.2, gt=0, le=1)
    anneal_start: int = Field(default=10_000, ge=0)
    """The step up to which p is `p_start`."""
    anneal_end: int | None = Field(default=None, ge=1)
    """The step of the last change of p. None, in the paper's variant: p takes its values for equally many steps each,
    `p_end` the last of them. None, in the library's: `steps`, which never comes, so that p never reaches `p_end`."""
    updates: int = Field(default=10, ge=2, le=10_000)
    """How many values p takes."""
    queue: int = Field(default=10, ge=1, le=1000)
    """Over how many of the last batches the penalties before and after a change are compared (q)."""


class K(Params):
    """So many features for a position: each one's (topk, 2406.04093), or on average over a batch (2412.06410)."""

    type: Literal["k"] = "k"
    k: int = Field(default=64, ge=1)
    aux_weight: float = Field(default=1 / 32, ge=0)
    """Of the loss by which dead features learn to explain the error (2406.04093, appendix A.2)."""
    dead_after: int = Field(default=10_000_000, ge=1)
    """Positions without firing after which a feature is dead."""
    threshold_start: int = Field(default=1000, ge=0)
    """The step from which on the threshold is estimated that a batch-top-k dictionary is used with."""
    threshold_decay: float = Field(default=0.999, ge=0, lt=1)
    """Of its moving average, in the library's variant; the paper's is the plain mean."""


class L0(Params):
    """A penalty on how many features are on, through a straight-through estimate (2407.14435, Eq. 9)."""

    type: Literal["l0"] = "l0"
    weight: float = Field(default=1.0, gt=0)
    """Lambda of the penalty."""
    target: float = Field(default=20.0, gt=0)
    """In the library's variant the penalty is (L0 / target - 1) squared; the paper's is L0 itself."""
    bandwidth: float = Field(default=0.001, gt=0)
    """Of the kernel of the estimate. It is of the size of a threshold, so `normalize` should be on."""
    threshold: float = Field(default=0.001, gt=0)
    """What all thresholds start as."""


Sparsity = Annotated[L1 | PAnneal | K | L0, Field(discriminator="type")]
_FITTING = {
    "standard": ("l1", "p_anneal"),
    "gated": ("l1", "p_anneal"),
    "topk": ("k",),
    "batchtopk": ("k",),
    "jumprelu": ("l0",),
}


class TrainParams(Params):
    """Defaults are those of 2408.00113 (residual stream of OthelloGPT and ChessGPT)."""

    data: Texts
    """Texts, an artifact of them, or an artifact of kind `data` whose tensor `tokens` [texts, positions] holds token
    ids, negative after a text's end."""
    layer: int = Field(ge=0)
    """The block, from 0."""
    site: str = "resid_post"
    """Where in the block."""
    arch: Architecture = "standard"
    sparsity: Sparsity = L1()
    """`l1` or `p_anneal` for standard and gated, `k` for topk and batchtopk, `l0` for jumprelu."""
    variant: Literal["paper", "library"] = "paper"
    """Where the papers and the library `dictionary_learning` 0.1.0 disagree; docs/methods/sae.md lists it."""
    error: Literal["unsquared", "squared"] | None = None
    """Of a standard dictionary: the mean norm of the error (paper, Eq. 8), or its square (library). None: as `variant`.
    The values of lambda of the one do not serve the other."""
    d_sae: int | None = Field(default=None, ge=1, le=1_048_576)
    """Features. None: 8 for each dimension of the activations."""
    steps: int = Field(default=36_621, ge=1)
    batch: int = Field(default=8192, ge=1)
    """Activations in a step."""
    buffer: int = Field(default=65_536, ge=1)
    """Activations that are held and shuffled at once, at least one batch; 4 bytes x dimensions each."""
    model_batch: int = Field(default=16, ge=1)
    """Texts in a forward of the model."""
    context: int = Field(default=128, ge=1)
    """Tokens of a text that are used; the rest is cut off."""
    skip_first: int = Field(default=0, ge=0)
    """Positions at a text's beginning that are left out (such as that of a BOS token)."""
    lr: float = Field(default=3e-4, gt=0)
    lr_warmup: int = Field(default=1000, ge=0)
    """Steps over which the learning rate rises from 0."""
    sparsity_warmup: int = Field(default=2000, ge=0)
    """Steps over which the penalty rises from 0."""
    decay_start: int | None = Field(default=None, ge=0)
    """The step from which on the learning rate falls to 0. None: it does not."""
    normalize: bool = False
    """Train on activations divided by the root of their mean squared norm; what comes out is for those as they are."""
    name: str = Field(default="", max_length=64)
    """Of the artifact."""

    @model_validator(mode="after")
    def _fits(self) -> "TrainParams":
        if self.sparsity.type not in _FITTING[self.arch]:
            raise ValueError(
                f"sparsity.type is {self.sparsity.type}; a {self.arch} dictionary takes "
                f"{' or '.join(_FITTING[self.arch])}."
            )
        if self.error is not None and self.arch != "standard":
            raise ValueError(f"error is for standard dictionaries; a {self.arch} one has the squared error.")
        for name in ("lr_warmup", "sparsity_warmup", "decay_start"):
            if (getattr(self, name) or 0) >= self.steps:
                raise ValueError(f"{name} is {getattr(self, name)}; expected less than steps, which is {self.steps}.")
        if isinstance(self.sparsity, PAnneal):
            _check_annealing(self.sparsity, self.steps)
        if isinstance(self.sparsity, K) and self.d_sae is not None and self.sparsity.k > self.d_sae:
            raise ValueError(f"sparsity.k is {self.sparsity.k}; expected at most d_sae, which is {self.d_sae}.")
        return self


def _check_annealing(annealing: PAnneal, steps: int) -> None:
    end = steps if annealing.anneal_end is None else annealing.anneal_end
    if not annealing.anneal_start < end <= steps:
        raise ValueError(
            f"sparsity.anneal_start is {annealing.anneal_start} and ends at {end}; expected a start before the end, "
            f"and an end within the {steps} steps."
        )
    if annealing.p_end > annealing.p_start:
        raise ValueError(f"sparsity.p_end is {annealing.p_end}; expected at most p_start, {annealing.p_start}.")
    if end - annealing.anneal_start < annealing.updates:
        raise ValueError(
            f"sparsity.updates is {annealing.updates}; expected at most one for each of the "
            f"{end - annealing.anneal_start} steps from anneal_start to the end."
        )


class TrainResult(Result):
    steps: int
    """That were done."""
    tokens: int
    """Tokens that went through the model."""
    epochs: float
    """How often each text was used."""
    sae: ArtifactName
    """The dictionary, for activations as they are in the model."""


_THRESHOLDS = tuple(number / 10 for number in range(10))


class EvalParams(Params):
    """How good a dictionary is on texts that it was not trained on, and, with labels, at what they say."""

    sae: ArtifactName
    data: Texts
    """Texts or token ids, as for `sae.train`."""
    layer: int | None = Field(default=None, ge=0)
    """None: where the dictionary says that it was trained."""
    site: str | None = None
    labels: ArtifactName | None = None
    """An artifact of kind `data`: `tokens` [texts, positions], token ids, negative after a text's end; `labels`
    [texts, positions, properties], 0 or 1; where only some positions count, `mask` [texts, positions]. Without it there
    is no coverage and no board reconstruction."""
    thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=_THRESHOLDS, min_length=1, max_length=32
    )
    """A feature is on above so much of its maximum (2408.00113, section 3)."""
    precision: float = Field(default=0.95, gt=0, le=1)
    """What a feature must have for a property to be listed for it (Eq. 5)."""
    min_fires: int = Field(default=10, ge=1)
    """How often it must fire for that."""
    train_texts: int | None = Field(default=None, ge=1)
    """So many of the labelled texts, the first, choose features and thresholds; the rest tells how good these are.
    None: half."""
    model_batch: int = Field(default=16, ge=1)
    context: int = Field(default=128, ge=1)
    skip_first: int | None = Field(default=None, ge=0)
    """Positions that are left out, and left as they are. None: as the dictionary was trained."""


class EvalResult(Result):
    tokens: int
    """Tokens that went through the model."""


#: Tensors [batch, d_sae] that a step of each kind holds at once, with those that malloc keeps for the next: counted in
#: processes of their own, at 36 and 8 MiB each (which gave 6 to 7, 10 to 14, 7 to 11, 9 to 12, 10 to 14).
_IN_A_STEP: dict[Architecture, int] = {"standard": 7, "gated": 12, "topk": 9, "batchtopk": 10, "jumprelu": 12}
_ANNEALED = 1  # more, below p = 1
_IN_A_BLOCK = 16  # tensors [tokens, hidden] of a block of the model, its MLP's inner ones four times as wide


def train_cost(params: TrainParams, model: ModelFacts) -> Estimate:
    """As if each text filled its context; shorter ones need as many forwards more as they are shorter.

    Memory, in numbers of 4 bytes: 2 x hidden x d_sae weights, seven times (with gradients, Adam's two moments, and
    three more that a checkpoint or the artifact is packed from); buffer x hidden; a forward's block, 16 x
    model_batch x context x hidden; and a step's features, batch x d_sae, as often as `_IN_A_STEP` says, most of it for
    a small model. `benchmarks/methods/sae_memory.py` has it beside what jobs held.
    """
    rows = params.steps * params.batch
    forwards = ceil(rows / (params.model_batch * params.context))
    d_sae = params.d_sae or _EXPANSION * model.hidden_size
    weights = 7 * 2 * model.hidden_size * d_sae
    held = max(params.buffer, params.batch) * model.hidden_size
    forward = _IN_A_BLOCK * params.model_batch * params.context * model.hidden_size
    step = (_IN_A_STEP[params.arch] + _ANNEALED * isinstance(params.sparsity, PAnneal)) * params.batch * d_sae
    return Estimate(
        forwards=forwards,
        tokens=forwards * params.model_batch * params.context,
        peak_bytes=(weights + held + forward + step) * _FLOAT,
    )


def eval_cost(params: EvalParams, model: ModelFacts) -> Estimate:
    """Of the texts as far as they are in the params; what an artifact holds is not known here."""
    texts = len(params.data) if isinstance(params.data, list) else 1
    forwards = 5 * ceil(texts / params.model_batch)  # mean, original, spliced, zero, mean-ablated
    d_sae = _EXPANSION * model.hidden_size
    rows = params.model_batch * params.context
    return Estimate(
        forwards=forwards,
        tokens=5 * texts * params.context,
        peak_bytes=(2 * rows * (model.vocab_size + d_sae) + 2 * d_sae * model.hidden_size) * _FLOAT,
    )


_CITES = (
    Citation(
        title="Measuring Progress in Dictionary Learning for Language Model Interpretability with Board Game Models",
        authors="Karvonen, Wright, Rager, Angell, Brinkmann, Smith, Mayrink Verdun, Bau, Marks",
        year=2024,
        where="arXiv:2408.00113",
    ),
    Citation(
        title="Improving Dictionary Learning with Gated Sparse Autoencoders",
        authors="Rajamanoharan, Conmy, Smith, Lieberum, Varma, Kramár, Shah, Nanda",
        year=2024,
        where="arXiv:2404.16014",
    ),
    Citation(
        title="Scaling and evaluating sparse autoencoders",
        authors="Gao, Dupré la Tour, Tillman, Goh, Troll, Radford, Sutskever, Leike, Wu",
        year=2024,
        where="arXiv:2406.04093",
    ),
    Citation(
        title="BatchTopK Sparse Autoencoders",
        authors="Bussmann, Leask, Nanda",
        year=2024,
        where="arXiv:2412.06410",
    ),
    Citation(
        title="Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders",
        authors="Rajamanoharan, Lieberum, Sonnerat, Conmy, Varma, Kramár, Nanda",
        year=2024,
        where="arXiv:2407.14435",
    ),
)

SPECS = (
    Spec(
        name="sae.train",
        version=1,
        title="Train a sparse autoencoder on activations that never leave the model's side.",
        cites=_CITES,
        params=TrainParams,
        result=TrainResult,
        run="interlace.methods.sae.train:run",
        estimate=train_cost,
        takes={"data": ("texts", "data")},
        makes=("sae",),
        page="docs/methods/sae.md",
        plot="interlace.methods.sae.plot:training",
    ),
    Spec(
        name="sae.eval",
        version=1,
        title="Measure a sparse autoencoder: sparsity, loss recovered, shrinkage, coverage, board reconstruction.",
        cites=_CITES[:1],
        params=EvalParams,
        result=EvalResult,
        run="interlace.methods.sae.evaluate:run",
        estimate=eval_cost,
        takes={"sae": ("sae",), "data": ("texts", "data"), "labels": ("data",)},
        page="docs/methods/sae.md",
        plot="interlace.methods.sae.plot:properties",
    ),
)
