"""`flow.knockout`: cut the way from some tokens to the last one in a window of layers; what is lost?"""

from typing import Annotated, Literal

from pydantic import Field

from interlace.methods.base import Citation, Estimate, ModelFacts, Params, Result, Spec, Texts

Block = Literal["subject", "subject_last", "subject_first", "not_subject", "prefix", "further", "last", "before_last"]
_TOKENS_A_CHARACTER = 0.4


class CutPrompt(Params):
    """A prompt that the model goes on with its answer."""

    text: Annotated[str, Field(min_length=1, max_length=4000)]
    subject: Annotated[str, Field(min_length=1, max_length=1000)]
    """As it stands in the text; where it stands more than once, the last is meant."""
    answer: Annotated[str, Field(max_length=200)] | None = None
    """Only its first token counts. Without one it is the model's own first choice."""


class FlowParams(Params):
    """Geva et al. 2023, section 4 (attention); Sharma et al. 2024, section 6 (Mamba)."""

    prompts: Annotated[tuple[CutPrompt, ...], Field(min_length=1, max_length=2000)]
    block: Annotated[tuple[Block, ...], Field(min_length=1)] = ("subject", "not_subject")
    """Tokens whose way is cut, one set after the other. `not_subject` is all before the last but the subject: the
    control. `before_last` is everything but the last."""
    window: Annotated[int, Field(ge=1, le=200)] = 10
    """Layers around each in which it is cut; published: 10 (Mamba-2.8b's 64), 9 (GPT-2 XL's 48)."""
    mode: Literal["auto", "attention", "mean_ablate_x"] = "auto"
    """`attention`: the last token attends to none of these tokens. `mean_ablate_x`: for Mamba, which has no edges to
    cut: what goes into the convolution at these tokens is its mean over `texts`. `auto`: what there is."""
    restore: bool = True
    """Of `mean_ablate_x`: what goes in at the other tokens before the last stays as in the clean run."""
    texts: Texts | None = None
    """For the means; published: 128 texts of up to 128 tokens. Without any, they are over the prompts."""
    longest: Annotated[int, Field(ge=1, le=4096)] = 128
    """Tokens that are read of each text."""
    filter_known: bool = True
    """Leave out prompts whose answer is not the model's first choice."""
    prefix: Annotated[str, Field(max_length=200)] = ""
    """Before each prompt, such as `<|endoftext|>`."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows of a forward, each with its own window."""


class FlowResult(Result):
    """Table `flow` (block, layer, change, low, high, n), change being (p' - p) / p; metrics `known` and, for each set
    of tokens, `largest_loss`, at the layer that its split names."""

    forwards: int
    """Passes of the model, each of up to `batch` rows."""


def estimate(params: FlowParams, facts: ModelFacts) -> Estimate:
    lengths = [int(_TOKENS_A_CHARACTER * len(params.prefix + one.text)) + 1 for one in params.prompts]
    rows = facts.n_layers * len(params.block)
    read = len(params.texts) if isinstance(params.texts, list) else 0
    row = 4 * max(lengths) * (16 * facts.hidden_size + max(lengths))
    return Estimate(
        forwards=len(lengths) * (1 + -(-rows // params.batch)) + read,
        tokens=sum(lengths) * (1 + rows) + read * params.longest,
        peak_bytes=params.batch * (row + 4 * facts.vocab_size) + 8 * max(lengths) * facts.hidden_size * facts.n_layers,
    )


SPECS = (
    Spec(
        name="flow.knockout",
        version=1,
        title="Cut the way from some tokens to the last one, layer by layer (attention knockout; in Mamba ablation).",
        cites=(
            Citation(
                title="Dissecting Recall of Factual Associations in Auto-Regressive Language Models",
                authors="Geva, Bastings, Filippova, Globerson",
                year=2023,
                where="arXiv:2304.14767",
            ),
            Citation(
                title="Locating and Editing Factual Associations in Mamba",
                authors="Sharma, Atkinson, Bau",
                year=2024,
                where="arXiv:2404.03646",
            ),
        ),
        params=FlowParams,
        result=FlowResult,
        run="interlace.methods.flow.run:run",
        estimate=estimate,
        takes={"texts": ("texts",)},
        page="docs/methods/flow.md",
        plot="interlace.methods.flow.plot:plot",
    ),
)
