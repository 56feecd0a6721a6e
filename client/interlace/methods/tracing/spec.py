"""`trace.causal`: corrupt a prompt's subject, restore one state at a time, see how much of the answer comes back."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import Citation, Estimate, ModelFacts, Params, Result, Spec

State = Literal["resid_post", "attn_out", "mlp_out", "mixer_out", "ssm_out", "mixer_in.gate", "mixer_in.x"]
Position = Literal["subject_first", "subject_last", "last", "subject", "prefix", "further", "all"]
_TOKENS_A_CHARACTER = 0.4
_FLOAT = 4  # bytes


class TracedPrompt(Params):
    """A prompt that the model goes on with its answer, such as "The Space Needle is in downtown"."""

    text: Annotated[str, Field(min_length=1, max_length=4000)]
    subject: Annotated[str, Field(min_length=1, max_length=1000)]
    """As it stands in the text; where it stands more than once, the last is meant."""
    answer: Annotated[str, Field(max_length=200)] | None = None
    """What the model should say; only its first token counts. Without one, the model's own first choice is traced."""
    alternative: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """Another subject of the same number of tokens, for `alt_subject`. Without one it is another prompt's subject: of
    one with the same words around it and another answer."""


class TracingParams(Params):
    """Meng et al. 2022, section 2 (noise), and Sharma et al. 2024, section 3 (another subject; Mamba)."""

    prompts: Annotated[list[TracedPrompt], Field(min_length=1, max_length=2000)]
    corruption: Literal["noise", "alt_subject"] = "noise"
    """`noise`: normal noise on the embeddings of the subject (Meng et al.); `alt_subject`: the prompt with another
    subject (Sharma et al.)."""
    k_sigma: Annotated[float, Field(gt=0, le=100)] = 3.0
    """Of the noise: standard deviations of the embeddings of the subjects' tokens."""
    samples: Annotated[int, Field(ge=1, le=100)] = 10
    """Of the noise, for each prompt."""
    states: Annotated[tuple[State, ...], Field(min_length=1, max_length=7)] = ("resid_post",)
    """What is restored, one after the other."""
    window: Annotated[int, Field(ge=1, le=200)] = 1
    """Layers around each in which a state is restored together; both papers take 10 for all but the residual stream,
    which is always restored in one."""
    sever: Annotated[tuple[State, ...], Field(max_length=6)] = ()
    """For each of these: once more with `resid_post` at the subject's last token, while this state has its corrupted
    value there in every layer. What is lost is what went through it."""
    positions: Annotated[tuple[Position, ...], Field(min_length=1)] = ("all",)
    """Which tokens are restored."""
    score: Literal["prob", "logprob", "logit_diff"] = "prob"
    """Of the answer. `logit_diff`: over the answer to the alternative subject."""
    normalised: bool = True
    """Effects as a share of the gap between the clean and the corrupted score (Sharma et al.); otherwise in units of
    the score (Meng et al.)."""
    filter_known: bool = True
    """Leave out prompts whose answer is not the model's first choice."""
    least_effect: Annotated[float, Field(ge=0)] = 0.05
    """Leave out prompts whose score the corruption lowers by less, in units of the score."""
    prefix: Annotated[str, Field(max_length=200)] = ""
    """Before each prompt, such as `<|endoftext|>`, which Sharma et al. put there."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows of a forward, each with a patch of its own."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.score == "logit_diff" and self.corruption == "noise":
            raise ValueError("`score: logit_diff` needs the answer to another subject: take `corruption: alt_subject`")
        return self


class TracingResult(Result):
    """Tables `aie` (state, severed, token_class, layer, aie, low, high, n) and `prompts`; metrics `total_effect`,
    `known`, and for each state `peak`, the last token apart; an artifact of kind `data`: each prompt's effects."""

    forwards: int
    """Passes of the model, each of up to `batch` rows."""


def estimate(params: TracingParams, facts: ModelFacts) -> Estimate:
    samples = params.samples if params.corruption == "noise" else 1
    forwards = tokens = longest = 0
    for prompt in params.prompts:
        length = int(_TOKENS_A_CHARACTER * len(params.prefix + prompt.text)) + 1
        longest = max(longest, length)
        places = length if "all" in params.positions else min(length, 3 * len(params.positions))
        rows = samples * facts.n_layers * (places * len(params.states) + len(params.sever))
        forwards += 2 + -(-rows // params.batch)
        tokens += (1 + samples + rows) * length
    row = facts.hidden_size * facts.n_layers * (len(params.states) + len(params.sever)) * samples
    peak = _FLOAT * longest * (row + params.batch * (16 * facts.hidden_size)) + _FLOAT * params.batch * facts.vocab_size
    return Estimate(forwards=forwards, tokens=tokens, peak_bytes=peak)


SPECS = (
    Spec(
        name="trace.causal",
        version=1,
        title="Which states carry a fact: restore each in a run whose subject is corrupted (causal tracing).",
        cites=(
            Citation(
                title="Locating and Editing Factual Associations in GPT",
                authors="Meng, Bau, Andonian, Belinkov",
                year=2022,
                where="arXiv:2202.05262",
            ),
            Citation(
                title="Locating and Editing Factual Associations in Mamba",
                authors="Sharma, Atkinson, Bau",
                year=2024,
                where="arXiv:2404.03646",
            ),
        ),
        params=TracingParams,
        result=TracingResult,
        run="interlace.methods.tracing.run:run",
        estimate=estimate,
        makes=("data",),
        page="docs/methods/tracing.md",
        plot="interlace.methods.tracing.plot:plot",
    ),
)
