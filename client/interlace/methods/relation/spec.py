"""`relation.lre`: the first-order map from a subject's state to the answer, and how faithful and how causal it is."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import Citation, Estimate, ModelFacts, Params, Result, Spec

_TOKENS_A_CHARACTER = 0.4
_FLOAT = 4  # bytes


class Sample(Params):
    """A subject of the relation, such as "France", and its object, such as "Paris"."""

    subject: Annotated[str, Field(min_length=1, max_length=1000)]
    object: Annotated[str, Field(min_length=1, max_length=200)]


class RelationParams(Params):
    """Hernandez et al. 2024: o = beta J s + b, with J the mean Jacobian over a few subjects and b what it leaves."""

    template: Annotated[str, Field(min_length=2, max_length=2000)]
    """The prompt, with `{}` where the subject stands, such as "The capital of {} is"."""
    samples: Annotated[list[Sample], Field(min_length=2, max_length=2000)]
    """Those that the model does not answer are left out."""
    n_train: Annotated[int, Field(ge=1, le=64)] = 8
    """Subjects that J and b are the means over, drawn by the seed; all others are held out."""
    icl: bool = True
    """Whether a prompt begins with the training subjects' prompts and objects, a line each, its own left out."""
    layers: Annotated[list[int], Field(min_length=1)] | None = None
    """Blocks, from 0, whose output at the subject's last token is s; -1 is the embeddings; default: all blocks."""
    betas: Annotated[tuple[Annotated[float, Field(gt=0, le=1000)], ...], Field(min_length=1, max_length=16)] = (2.25,)
    """What J is multiplied with in the answer; the paper takes 2.25 for GPT-J and GPT-2 XL and 8 for Llama 13B."""
    ranks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=16)] = (100,)
    """Singular values of J that its inverse keeps in a causal edit; no more than there are."""
    pairs: Annotated[int, Field(ge=0, le=2000)] = 40
    """Held-out subjects that are edited into another one with another answer."""
    known: Literal["token", "prefix"] = "token"
    """When an answer is right: its first token is the object's, or, as in the paper's code, its text without case is a
    beginning of the object."""
    prefix: Annotated[str, Field(max_length=200)] = ""
    """Before each prompt."""
    keep: Literal["best", "all"] = "best"
    """Whether the artifact has the operator of the best layer, or of each."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 64
    """Rows of a forward; a Jacobian takes a row for each dimension of the state."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.template.count("{}") != 1:
            raise ValueError(f"`template` has `{{}}` {self.template.count('{}')} times; expected once, for the subject")
        if len(self.samples) <= self.n_train:
            raise ValueError(f"{len(self.samples)} `samples` leave none held out of {self.n_train} `n_train`")
        subjects = [sample.subject for sample in self.samples]
        if len(set(subjects)) < len(subjects):
            raise ValueError("a subject of `samples` is there twice")
        return self


class RelationResult(Result):
    """Tables `faithfulness` (layer, beta, faithfulness, low, high, bias_only, identity, n), `causality` (layer, rank,
    causality, low, high, swap, random, n) and `subjects`; an artifact of kind `data` with J and b."""

    layer: int
    """The best block: of the highest faithfulness, all held-out subjects together."""
    beta: float
    """The best of `betas` there."""
    prompt: str
    """What stands before the query of a held-out subject."""


def estimate(params: RelationParams, facts: ModelFacts) -> Estimate:
    shots = params.n_train * params.icl
    line = _TOKENS_A_CHARACTER * (len(params.template) + max(len(one.subject + one.object) for one in params.samples))
    length = int(line * (1 + shots)) + 1
    layers = facts.n_layers if params.layers is None else len(params.layers)
    jacobians = params.n_train * -(-facts.hidden_size // params.batch)
    edited = layers * (2 + len(params.ranks)) * -(-params.pairs // params.batch)
    forwards = jacobians + edited + 3 * len(params.samples)
    rows = min(params.batch, facts.hidden_size)
    state = facts.hidden_size * facts.hidden_size * layers * 3
    return Estimate(
        forwards=forwards,
        backwards=jacobians,
        tokens=int(jacobians * rows * length + edited * params.batch * length + 3 * len(params.samples) * length),
        peak_bytes=_FLOAT * (state + rows * length * facts.hidden_size * facts.n_layers * 24),
    )


SPECS = (
    Spec(
        name="relation.lre",
        version=1,
        title="How far a relation is one affine map from subject to answer (linear relational embedding).",
        cites=(
            Citation(
                title="Linearity of Relation Decoding in Transformer Language Models",
                authors="Hernandez, Sen Sharma, Haklay, Meng, Wattenberg, Andreas, Belinkov, Bau",
                year=2024,
                where="arXiv:2308.09124",
            ),
            Citation(
                title="Locating and Editing Factual Associations in Mamba",
                authors="Sharma, Atkinson, Bau",
                year=2024,
                where="arXiv:2404.03646",
            ),
        ),
        params=RelationParams,
        result=RelationResult,
        run="interlace.methods.relation.run:run",
        estimate=estimate,
        makes=("data",),
        page="docs/methods/relation.md",
        plot="interlace.methods.relation.plot:plot",
    ),
)
