"""`feature.describe`: what it takes, gives and costs. Nothing here needs torch."""

from math import ceil
from typing import Annotated

from pydantic import Field

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec, Texts
from interlace.methods.shared.features.described import Description, Reading

_FLOAT = 4  # bytes
_EXPANSION = 8  # features for each dimension, where the dictionary is not known
_MOST = 256  # features of one run


class DescribeParams(Params):
    """Which features of which dictionary, and the texts to show them on."""

    sae: ArtifactName
    data: Texts
    """Texts, an artifact of them, or an artifact of kind `data` whose tensor `tokens` [texts, positions] holds token
    ids, negative after a text's end."""
    features: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=_MOST)
    """Their numbers; up to 256."""
    layer: int | None = Field(default=None, ge=0)
    """None: where the dictionary says that it was trained."""
    site: str | None = None
    reading: Reading = Reading()
    model_batch: int = Field(default=16, ge=1)
    """Texts in a forward of the model."""
    context: int = Field(default=128, ge=1)
    """Tokens of a text that are used; the rest is cut off."""
    skip_first: int | None = Field(default=None, ge=0)
    """Positions at a text's beginning that are left out. None: as the dictionary was trained."""


class DescribeResult(Result):
    features: tuple[Description, ...]
    """In the order asked for."""
    tokens: int
    """Tokens that went through the model."""


def cost(params: DescribeParams, model: ModelFacts) -> Estimate:
    """Of the texts as far as they are in the params; what an artifact holds is not known here."""
    texts = len(params.data) if isinstance(params.data, list) else 1
    rows = params.model_batch * params.context
    d_sae = _EXPANSION * model.hidden_size
    weights = 2 * d_sae * model.hidden_size
    kept = len(params.features) * (texts * params.context + params.reading.k * params.context)
    return Estimate(
        forwards=ceil(texts / params.model_batch),
        tokens=texts * params.context,
        peak_bytes=(weights + rows * (model.vocab_size + 2 * d_sae) + kept) * _FLOAT,
    )


SPECS = (
    Spec(
        name="feature.describe",
        version=1,
        title="Show features of a sparse dictionary: where they are strongest, how often they are on, what they say.",
        cites=(
            Citation(
                title="Towards Monosemanticity: Decomposing Language Models With Dictionary Learning",
                authors="Bricken, Templeton, Batson, Chen, Jermyn, Conerly, Turner, Anil, et al.",
                year=2023,
                where="https://transformer-circuits.pub/2023/monosemantic-features",
            ),
            Citation(
                title="Sparse Feature Circuits: Discovering and Editing Interpretable Causal Graphs in Language Models",
                authors="Marks, Rager, Michaud, Belinkov, Bau, Mueller",
                year=2024,
                where="arXiv:2403.19647",
            ),
        ),
        params=DescribeParams,
        result=DescribeResult,
        run="interlace.methods.feature.run:run",
        estimate=cost,
        takes={"sae": ("sae",), "data": ("texts", "data")},
        page="docs/methods/feature.md",
        plot="interlace.methods.feature.plot:plot",
    ),
)
