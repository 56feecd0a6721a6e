"""What `norm.lens` takes and gives. The gateway reads this: no torch here."""

from pydantic import Field

from interlace.methods.base import Citation, Estimate, ModelFacts, Params, Result, Spec, Texts


class NormParams(Params):
    prompts: Texts
    """Texts to read, each by itself."""
    order: float = Field(default=2.0, ge=1.0, le=16.0)
    """Of the norm: 2 is the Euclidean one."""


class NormResult(Result):
    norms: list[float]
    """Behind each block, the mean norm over all tokens of all prompts."""


def estimate(params: NormParams, facts: ModelFacts) -> Estimate:
    prompts = params.prompts if isinstance(params.prompts, list) else []
    tokens = sum(map(len, prompts))  # a token has at least a letter
    return Estimate(forwards=len(prompts), tokens=tokens, peak_bytes=8 * facts.hidden_size * tokens * facts.n_layers)


SPECS = (
    Spec(
        name="norm.lens",
        version=1,
        title="How long the residual stream is behind each block.",
        cites=(Citation(title="An example", authors="Interlace", year=2026, where="examples/method_package"),),
        params=NormParams,
        result=NormResult,
        run="norm_lens.run:run",
        estimate=estimate,
        takes={"prompts": ("texts",)},
        makes=("data",),
    ),
)
