"""`elm.erase`: what it takes, what it gives, what it costs.

Rohit Gandikota, Sheridan Feucht, Samuel Marks, David Bau, "Erasing Conceptual Knowledge from Language Models",
arXiv:2410.02760. "code" is the authors' repository, github.com/rohitgandikota/erasing-llm, at fa33064. Where the two
differ, `variant` chooses; the default is the paper.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import (
    ArtifactName,
    Citation,
    Estimate,
    ModelFacts,
    Params,
    Result,
    Spec,
    Texts,
)
from interlace.methods.elm import templates

#: What the reference code does otherwise than the paper says, by field.
CODE: dict[str, Any] = {
    "eta": 1000.0,
    "eta_schedule": "linear_ramp",
    "temperature": 1.2,
    "top_k": 50,
    "retain_target": "argmax",
    "lora": {"rank": 256},
    "fluency": {"sees_prompt": False},
}
Lambda = Annotated[float, Field(ge=0, le=1000)]
_Words = Annotated[str, Field(min_length=1, max_length=4000)]


class Concept(Params):
    """What to erase: keywords, which are put into the published prefixes, or prefixes of one's own."""

    keywords: tuple[_Words, ...] = ()
    """Put, comma by comma, into the reference code's ten expert and ten novice prefixes."""
    expert_prefixes: tuple[_Words, ...] = ()
    """Before a text they make its writer one who knows the concept: c- of Eq. 6."""
    novice_prefixes: tuple[_Words, ...] = ()
    """Before a text they make its writer one who does not: c+ of Eq. 6."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        own = bool(self.expert_prefixes), bool(self.novice_prefixes)
        if any(own) and not all(own):
            raise ValueError("expert_prefixes and novice_prefixes go together; only one of them is given")
        if bool(self.keywords) == all(own):
            raise ValueError("give either keywords, or expert_prefixes and novice_prefixes")
        return self

    @property
    def expert(self) -> tuple[str, ...]:
        return self.expert_prefixes or templates.filled(templates.EXPERT, self.keywords)

    @property
    def novice(self) -> tuple[str, ...]:
        return self.novice_prefixes or templates.filled(templates.NOVICE, self.keywords)


class Lora(Params):
    """The low-rank adapter that is trained."""

    rank: int = Field(default=4, ge=1, le=1024)
    """Paper: 4; code: 256."""
    alpha: float = Field(default=16.0, gt=0)
    """The update is alpha / rank times B A."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    layers: tuple[int, int] = (4, 7)
    """First and last block, 0-based, both in. Paper: 4 to 7."""
    targets: tuple[str, ...] = Field(default=("attn", "mlp", "mixer"), min_length=1)
    """The linear layers of these parts of a block, as far as it has them, or single ones by the end of their name."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not 0 <= self.layers[0] <= self.layers[1]:
            raise ValueError(f"layers is {list(self.layers)}; expected [first, last], with 0 <= first <= last")
        return self


class Fluency(Params):
    """Texts that the guided base model writes, for the third loss."""

    gamma: float = Field(default=3.0, ge=0)
    """Guidance: log p + gamma (log novice - log expert). Code: 3."""
    new_tokens: tuple[int, int] = (100, 300)
    """How many tokens are written, at least and at most. Code: 100 to 300."""
    sees_prompt: bool = True
    """Whether expert and novice read the prompt, as in Eq. 6, or only what is written after it, as in the code."""
    prompt_chars: tuple[int, int] = (50, 300)
    """How much of a text is the prompt, in characters. Code: 50 to 300."""
    redirects: tuple[str, ...] = templates.REDIRECTS
    """One of them, after ". ", changes the subject after the prompt; none: the prompt alone."""
    samples: int | None = Field(default=None, ge=1)
    """How many are written; None: one for each text on the concept, as in the code."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in ("new_tokens", "prompt_chars"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise ValueError(f"{name} is [{least}, {most}]; expected [least, most], with 1 <= least <= most")
        return self


class Question(Params):
    """One item of multiple choice."""

    question: str
    choices: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=2, max_length=26)
    answer: int = Field(ge=0)
    """The index of the right choice."""

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        if self.answer >= len(self.choices):
            raise ValueError(f"answer is {self.answer}, but there are {len(self.choices)} choices, from 0 on")
        return self


class Cloze(Params):
    """A beginning, and how it goes on: joined by a space."""

    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class Questions(Params):
    """What a topic is measured by."""

    choices: tuple[Question, ...] = ()
    cloze: tuple[Cloze, ...] = ()


class Evaluation(Params):
    """What is measured before and after."""

    erased: Questions = Questions()
    """On what is to be erased."""
    retained: Questions = Questions()
    """On what is to stay."""
    retained_texts: Texts | None = None
    """For the perplexity; None: the texts that were trained on, which the metric's split then says."""
    scoring: Literal["letters", "answers"] = "letters"
    """`letters`: the options are listed, and A, B... compared, as lm-evaluation-harness does for WMDP and MMLU.
    `answers`: each choice's own text, log-probability by bytes; for models too small for letters."""
    generations: int = Field(default=10, ge=0)
    """How many texts are written on the erased topic, before and after: samples, leaks and their perplexity."""
    generation_tokens: int = Field(default=100, ge=1)
    """Tokens of each. Paper: up to 500."""
    probes: bool = True
    """Linear probes of every layer, on the questions of multiple choice."""
    relearn_steps: int = Field(default=0, ge=0)
    """Updates of the relearning attack: the adapter is trained on the concept's texts, and measured again. 0: none."""
    batch: int = Field(default=8, ge=1)
    """Rows of a pass that measures."""


class StopAtChance(Params):
    """Ours, not published: train until held-back questions are answered as a guesser would, and no further."""

    erased: tuple[Question, ...] = Field(min_length=1)
    """On what is to be erased, and none of `evaluation.erased`: what chooses an adapter cannot measure it."""
    retained: Questions = Questions()
    """On what is to stay, and none of `evaluation.retained`; none: only chance counts."""
    every: int = Field(default=20, ge=1)
    """Updates from one look at them to the next."""
    max_drop: float = Field(default=0.02, ge=0, le=1)
    """How many of `retained` may be lost, as a share of all. Looks that lost more are kept only if all did."""


class EraseParams(Params):
    """Eq. 6 for the target; L = lambda_1 L_erase + lambda_2 L_retain + lambda_3 L_fluency for what is minimised."""

    variant: Literal["paper", "code"] = "paper"
    """What the fields that are not given are: the paper's, or the reference code's (eta ramps 1 to 1000 along the
    positions, rank 256, temperature 1.2, top 50 after guidance, retain loss against the likeliest token, contexts that
    do not see the prompt)."""
    concept: Concept
    concept_texts: Texts
    """Texts on the concept. Paper: 5,000 on bioweapons, 1,000 on cyber attacks, 3,000 on Harry Potter."""
    retain_texts: Texts
    """Texts on what is to stay."""
    max_chars: int = Field(default=700, ge=1)
    """How much of a text is used. Code: 700."""
    eta: float = Field(default=500.0, ge=0)
    """How far the target moves from expert to novice (Eq. 6). Paper: 500; code: 1000."""
    eta_schedule: Literal["constant", "linear_ramp"] = "constant"
    """`linear_ramp`: from eta_start at a text's first token to eta at its last, which the code does."""
    eta_start: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    """Of all three distributions of the target. Code: 1.2."""
    top_k: int | None = Field(default=None, ge=1)
    """The target keeps this many tokens, chosen after guidance. Code: 50."""
    plausible_k: int | None = Field(default=None, ge=1)
    """Ours, not published: only the base model's likeliest this many tokens may be in a guided distribution, chosen
    before guidance, in the target and in the fluency texts. Guidance multiplies noise, and can make a token the
    likeliest that the model would never write; `top_k`, which comes after, cannot prevent that."""
    distil_temperature: float = Field(default=1.0, ge=1, le=100)
    """Ours, not published: the erase loss compares target and adapted model at this temperature, times its square, as
    distillation does (1503.02531, section 2). At 1 only likely tokens count, and the order of the unlikely ones, which
    multiple choice asks for, stays as it was; at 10 it is learned, too. What is written has temperature 1 as ever."""
    lambdas: tuple[Lambda, Lambda, Lambda] = (1.0, 1.0, 1.0)
    """Weights of erase, retain and fluency. Published: 1 each (Table 5 has others)."""
    retain_target: Literal["soft", "argmax"] = "soft"
    """`soft`: the base model's distribution (paper); `argmax`: its likeliest token, which the code does."""
    lora: Lora = Lora()
    fluency: Fluency = Fluency()
    lr: float = Field(default=5e-5, gt=0)
    """Of AdamW, constant. Code: 5e-5."""
    steps: int = Field(default=750, ge=1, le=1_000_000)
    """Updates. Code: 3,000 texts, four an update."""
    batch: int = Field(default=1, ge=1)
    """Texts of each of the three kinds in a pass. Code: 1."""
    grad_accum: int = Field(default=4, ge=1)
    """Passes in an update. Code: 4."""
    stop_at_chance: StopAtChance | None = None
    """Ours, not published: `steps` is then the most. Training stops at the first look at held-back questions that
    finds them at chance or below, and the adapter of the look nearest to chance is kept. None: all `steps`."""
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="before")
    @classmethod
    def _as_the_variant(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("variant") != "code":
            return given
        both = dict(CODE)
        for name, value in given.items():
            nested = isinstance(value, Mapping) and isinstance(both.get(name), Mapping)
            both[name] = {**both[name], **value} if nested else value
        return both

    @model_validator(mode="after")
    def _something_to_minimise(self) -> Self:
        if not any(self.lambdas):
            raise ValueError("lambdas is [0, 0, 0]; at least one of the three losses needs a weight")
        return self

    @model_validator(mode="after")
    def _held_back_is_not_measured(self) -> Self:
        held, of = self.stop_at_chance, self.evaluation
        if held is None:
            return self
        for topic, mine, measured in (
            ("erased", Questions(choices=held.erased), of.erased),
            ("retained", held.retained, of.retained),
        ):
            both = _asked(mine) & _asked(measured)
            if both:
                raise ValueError(
                    f"stop_at_chance.{topic} and evaluation.{topic} share {len(both)} questions, such as "
                    f"{min(both)[0]!r}; expected none: what chooses an adapter cannot measure it"
                )
        return self


def _asked(questions: Questions) -> set[tuple[str, str]]:
    """What is asked and what is right, in whatever order, among whatever choices."""
    choices = {(one.question, one.choices[one.answer]) for one in questions.choices}
    return choices | {(one.prompt, one.answer) for one in questions.cloze}


class EraseResult(Result):
    """What came of it. Metrics are named in the method's page; their split says of what they are, and when."""

    adapter: ArtifactName = ""
    """The adapter: of kind `peft`, or, where PEFT refuses a layer, `edit`."""


def estimate(params: EraseParams, facts: ModelFacts) -> Estimate:
    """From counts alone: a token is taken to be four characters."""
    text, other = (_tokens(texts, params.max_chars) for texts in (params.concept_texts, params.retain_texts))
    prefix = max(len(one) for one in (*params.concept.expert, *params.concept.novice)) // 4
    rounds, batch = params.steps * params.grad_accum, params.batch
    erase, retain, fluency = (weight > 0 for weight in params.lambdas)
    written = sum(params.fluency.new_tokens) // 2
    prompt = min(text, sum(params.fluency.prompt_chars) // 8)
    forwards, backwards = (4 * erase + 2 * retain + fluency) * rounds, (erase + retain + fluency) * rounds
    tokens = batch * rounds * (erase * (4 * text + 2 * prefix) + 2 * retain * other + fluency * (prompt + written))
    if fluency:
        n_texts = len(params.concept_texts) if isinstance(params.concept_texts, list) else rounds * batch
        samples = params.fluency.samples or n_texts
        forwards += 3 * written * -(-samples // params.evaluation.batch)
        tokens += samples * (3 * (prompt + written) + 2 * prefix)
    passes, read = (one + other for one, other in zip(_measured(params), _looks(params), strict=True))
    relearn = params.evaluation.relearn_steps
    layers = max(1, min(params.lora.layers[1], facts.n_layers - 1) - params.lora.layers[0] + 1)
    adapter = layers * params.lora.rank * 20 * facts.hidden_size  # inputs and outputs of a block's linear layers
    row = max(text, other, prompt + written)
    logits = 4 * facts.vocab_size
    held = batch * row * (facts.n_layers * 16 * 4 * facts.hidden_size + 8 * logits) + row * 16 * logits
    return Estimate(
        forwards=forwards + passes + relearn,
        backwards=backwards + relearn,
        tokens=tokens + read + relearn * batch * params.grad_accum * text,
        peak_bytes=adapter * 16 + held,
    )


def _tokens(texts: Texts, most: int) -> int:
    """Of a text, at the mean; of an artifact's, as many as there may be."""
    if isinstance(texts, str):
        return max(1, most // 4)
    return max(1, sum(min(len(text), most) for text in texts) // (4 * len(texts)))


def _measured(params: EraseParams) -> tuple[int, int]:
    """Forward passes and tokens of measuring, about: everything twice, and what is erased once more for the novice."""
    of = params.evaluation
    times = 3 + (of.relearn_steps > 0)
    rows = 0
    for questions in (of.erased, of.retained):
        options = 1 if of.scoring == "letters" else 4
        rows += len(questions.choices) * (options + 4 * of.probes) + len(questions.cloze)
    rows *= times
    written = 2 * of.generations * of.generation_tokens
    return rows // of.batch + 2 * of.generation_tokens * -(-of.generations // of.batch), rows * 40 + written


def _looks(params: EraseParams) -> tuple[int, int]:
    """Forward passes and tokens of looking at held-back questions, if it goes to the last update."""
    held, of = params.stop_at_chance, params.evaluation
    if held is None:
        return 0, 0
    options = 1 if of.scoring == "letters" else 4
    rows = (len(held.erased) + len(held.retained.choices)) * options + len(held.retained.cloze)
    looks = params.steps // held.every + 2
    return looks * -(-rows // of.batch), looks * rows * 40


SPECS = (
    Spec(
        name="elm.erase",
        version=1,
        title="Erase a concept: train an adapter with which a model writes as one who never knew it.",
        cites=(
            Citation(
                title="Erasing Conceptual Knowledge from Language Models",
                authors="Rohit Gandikota, Sheridan Feucht, Samuel Marks, David Bau",
                year=2024,
                where="arXiv:2410.02760",
            ),
        ),
        params=EraseParams,
        result=EraseResult,
        run="interlace.methods.elm.run:run",
        estimate=estimate,
        takes={"concept_texts": ("texts",), "retain_texts": ("texts",), "evaluation.retained_texts": ("texts",)},
        makes=("peft", "edit"),
        page="docs/methods/elm.md",
        plot="interlace.methods.elm.plot:plot",
    ),
)
