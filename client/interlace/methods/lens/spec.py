"""`lens.logit`: read each block's residual stream through the model's own last norm and head."""

from typing import Annotated, Literal

from pydantic import Field

from interlace.methods.base import Citation, Estimate, ModelFacts, Params, Result, Spec, Texts

_TOKENS = 64  # a prompt, where nobody has counted


class LensParams(Params):
    prompts: Texts
    """Texts to read, each by itself."""
    layers: Annotated[list[int], Field(min_length=1)] | None = None
    """Blocks whose output is read, from 0, negative ones from the end; default: all."""
    positions: Annotated[list[int], Field(min_length=1)] | Literal["all"] = Field(default=[-1])
    """Token positions that are read; negative ones from the end; `all`: every one, and the result has a table `tokens`
    (prompt, position, token) beside `readings`."""
    top: int = Field(default=5, ge=1, le=100)
    """How many tokens are told of each reading, the likeliest first."""
    targets: list[str] | None = None
    """For each prompt a continuation, of whose first token the rank is told; default: what the model says."""


class LensResult(Result):
    layers: list[int]
    """The blocks that were read, in order."""
    entropy: list[float]
    """Mean entropy of the reading of each block, in nats."""


def estimate(params: LensParams, facts: ModelFacts) -> Estimate:
    prompts = len(params.prompts) if isinstance(params.prompts, list) else 1
    longest = max(map(len, params.prompts)) if isinstance(params.prompts, list) else _TOKENS
    read = longest if params.positions == "all" else len(params.positions)
    logits = 4 * facts.vocab_size * read * (facts.n_layers + 1)
    return Estimate(
        forwards=prompts,
        tokens=sum(map(len, params.prompts)) if isinstance(params.prompts, list) else _TOKENS,
        peak_bytes=64 * facts.hidden_size * longest * facts.n_layers + 4 * logits + 4 * facts.vocab_size * longest,
    )


SPECS = (
    Spec(
        name="lens.logit",
        version=1,
        title="What the model would say after each block: the logit lens.",
        cites=(
            Citation(
                title="interpreting GPT: the logit lens",
                authors="nostalgebraist",
                year=2020,
                where="https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens",
            ),
        ),
        params=LensParams,
        result=LensResult,
        run="interlace.methods.lens.run:run",
        estimate=estimate,
        takes={"prompts": ("texts",)},
        page="docs/methods/README.md",
        plot="interlace.methods.lens.plot:plot",
    ),
)
