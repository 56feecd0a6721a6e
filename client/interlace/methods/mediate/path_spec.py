"""`mediate.paths`: what goes from one component to another by the way between them alone."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import Citation, Estimate, ModelFacts, Params, Result, Spec
from interlace.methods.mediate.pair_spec import Heads, Layers, Pair, tokens_of

SenderSite = Literal["attn_out", "mlp_out", "mixer_out"]
ReceiverSite = Literal[
    "logits",
    "attn_out",
    "attn_q",
    "attn_k",
    "attn_v",
    "mlp_out",
    "mlp_act",
    "head",
    "mixer_out",
    "mixer_act",
    "mixer_in.x",
    "mixer_in.gate",
]
_FLOAT = 4  # bytes


class Senders(Params):
    """Components whose value is taken from the source run."""

    family: Literal["parts"] = "parts"
    sites: Annotated[tuple[SenderSite, ...], Field(min_length=1)]
    layers: Layers | None = None
    """Blocks from 0; default: all."""
    positions: Annotated[tuple[int, ...], Field(min_length=1)] | Literal["each", "all"] = "all"
    """Tokens, negative ones from the end; `each`: every one by itself; `all`: the whole row at once."""


class Receiver(Params):
    """A component that hears a sender; `logits` is what is read at the end."""

    site: ReceiverSite
    layer: Annotated[int, Field(ge=0)] | None = None
    """Of all but `logits`."""
    head: Annotated[int, Field(ge=0)] | None = None
    """Of `head`; of `attn_q`, `attn_k` and `attn_v`, which without it are of all heads. Where heads share keys and
    values, it is the number of what they share."""
    position: int | Literal["all"] = "all"
    """Where it hears."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.layer is None) != (self.site == "logits") or (self.head is None and self.site == "head"):
            raise ValueError("a receiver has a `layer`, unless it is `logits`; and a `head` where its site is `head`")
        if self.head is not None and self.site not in ("head", "attn_q", "attn_k", "attn_v"):
            raise ValueError(f"a receiver at {self.site} has no `head`; those at head, attn_q, attn_k and attn_v have")
        return self


class PathParams(Params):
    """Goldowsky-Dill et al. 2023, section 2; Wang et al. 2022, section 3.1. In the base run a sender is as in the
    source while all other components are as in the base; what a receiver then gives is put into a second base run, in
    which everything behind it goes free. m is logit(answer) - logit(source_answer) at the last token."""

    pairs: Annotated[list[Pair], Field(min_length=2, max_length=5000)]
    senders: Annotated[Senders | Heads, Field(discriminator="family")]
    receivers: Annotated[tuple[Receiver, ...], Field(min_length=1, max_length=1000)] = (Receiver(site="logits"),)
    through: Literal["direct", "mlps"] = "direct"
    """What may lie between: nothing but the residual stream and norms (Goldowsky-Dill et al.), or MLPs too (Wang et
    al., who hold attention alone)."""
    joint: bool = False
    """All receivers of a sender at once, as one effect."""
    budget: Annotated[int, Field(ge=1)] = 100_000
    """Rows with a patch: the most that it may take."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows of a forward."""


class PathResult(Result):
    """Table `paths` (sender, sender_layer, sender_position, receiver, receiver_layer, receiver_position, effect, low,
    high, n: the largest first), effects being m(path) - m(base) in logits; table `senders` (site, layer, position,
    effect, low, high, n): the whole of each sender by exact patching; metric `total_effect`."""

    rows: int
    """Rows with a patch that it took."""


def estimate(params: PathParams, facts: ModelFacts) -> Estimate:
    n, length = len(params.pairs), tokens_of(params.pairs)
    layers = facts.n_layers if params.senders.layers is None else len(params.senders.layers)
    if isinstance(params.senders, Heads):
        senders = layers * max(1, facts.hidden_size // 64)
    else:
        positions = params.senders.positions
        tokens = len(positions) if isinstance(positions, tuple) else length if positions == "each" else 1
        senders = layers * len(params.senders.sites) * tokens
    rows = n * senders * (2 + (1 if params.joint else len(params.receivers)))
    forwards = 4 * -(-n // params.batch) + -(-rows // params.batch)
    # The states of every component, of both runs, of one batch.
    held = 4 * facts.n_layers + len(params.receivers)
    return Estimate(
        forwards=forwards,
        tokens=rows * length + 4 * n * length,
        peak_bytes=_FLOAT * params.batch * length * facts.hidden_size * (held + 16 * facts.n_layers),
    )


PATHS = Spec(
    name="mediate.paths",
    version=1,
    title="Path patching: what goes from one component to another by the way between them alone.",
    cites=(
        Citation(
            title="Localizing Model Behavior with Path Patching",
            authors="Goldowsky-Dill, MacLeod, Sato, Arora",
            year=2023,
            where="arXiv:2304.05969",
        ),
        Citation(
            title="Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small",
            authors="Wang, Variengien, Conmy, Shlegeris, Steinhardt",
            year=2022,
            where="arXiv:2211.00593",
        ),
    ),
    params=PathParams,
    result=PathResult,
    run="interlace.methods.mediate.paths:run",
    estimate=estimate,
    page="docs/methods/paths.md",
    plot="interlace.methods.mediate.plot:paths",
)
