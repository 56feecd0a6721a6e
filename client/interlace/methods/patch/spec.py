"""`patch.prompts`: put the states of one prompt into another, each by itself, and see how far the answer follows."""

from typing import Annotated, Literal

from pydantic import Field

from interlace.methods.base import Citation, Estimate, ModelFacts, Params, Result, Spec

PatchedSite = Literal["resid_post", "attn_out", "mlp_out", "mixer_out"]
Prompt = Annotated[str, Field(min_length=1, max_length=4000)]
Answer = Annotated[str, Field(min_length=1, max_length=200)]
_TOKENS_A_CHARACTER = 0.4
_FLOAT = 4  # bytes


class PatchParams(Params):
    """Heimersheim and Nanda 2024, section 2: with m = logit(answer_a) - logit(answer_b) at the last token, and a state
    of b put into the run of a, the effect is (m - m(a)) / (m(b) - m(a)): 0 where nothing changes, 1 where a is as b."""

    a: Prompt
    b: Prompt
    """Another prompt. Of unlike numbers of tokens, the common beginning and the ends are put side by side."""
    answer_a: Answer | None = None
    """What the model should say to a; only its first token counts. Without one, its own first choice."""
    answer_b: Answer | None = None
    site: PatchedSite = "resid_post"
    layers: Annotated[list[int], Field(min_length=1)] | None = None
    """Blocks from 0; default: all."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows of a forward, each with a patch of its own."""


class PatchResult(Result):
    """Table `effects` (into, layer, position, margin, effect), `into` being the prompt that is patched, a or b; table
    `tokens` (position, at_a, at_b, a, b), which tokens are put side by side; metrics `margin` of each prompt and `peak`
    of each direction."""

    answers: tuple[str, str]
    """The two tokens whose logits are compared: a's and b's."""


def estimate(params: PatchParams, facts: ModelFacts) -> Estimate:
    length = int(_TOKENS_A_CHARACTER * max(len(params.a), len(params.b))) + 1
    rows = length * (facts.n_layers if params.layers is None else len(params.layers))
    states = _FLOAT * length * facts.hidden_size * facts.n_layers * 2
    return Estimate(
        forwards=2 + 2 * -(-rows // params.batch),
        tokens=2 * (1 + rows) * length,
        peak_bytes=states + _FLOAT * params.batch * (length * 16 * facts.hidden_size + 2 * facts.vocab_size),
    )


SPECS = (
    Spec(
        name="patch.prompts",
        version=1,
        title="Put the states of one prompt into another, each by itself: how far the answer follows (patching).",
        cites=(
            Citation(
                title="How to use and interpret activation patching",
                authors="Heimersheim, Nanda",
                year=2024,
                where="arXiv:2404.15255",
            ),
        ),
        params=PatchParams,
        result=PatchResult,
        run="interlace.methods.patch.run:run",
        estimate=estimate,
        page="docs/methods/patch.md",
        plot="interlace.methods.patch.plot:plot",
    ),
)
