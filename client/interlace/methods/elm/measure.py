"""Before and after: everything that is measured, and how it is told."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from interlace.methods.base import Metric, Table
from interlace.methods.elm import metrics, statistics
from interlace.methods.elm.guidance import write
from interlace.methods.elm.language import Language, Row, batches
from interlace.methods.elm.spec import EraseParams, Questions
from interlace.methods.shared import intervals

#: A context in which the model is the base model.
Base = Callable[[], AbstractContextManager[None]]
_TOPICS = ("erased", "retained")


@dataclass(frozen=True)
class Topic:
    """Answers to what one topic is measured by."""

    chosen: metrics.Chosen | None = None
    recalled: tuple[list[bool], list[float]] | None = None


@dataclass(frozen=True)
class State:
    """What a model was found to do at one time."""

    erased: Topic = Topic()
    retained: Topic = Topic()
    written: tuple[str, ...] = ()
    leaked: tuple[bool, ...] = ()
    #: Surprise of each text that was written, for the base model, in nats a token; and after the novice prefix.
    strange: tuple[float, ...] = ()
    strange_novice: tuple[float, ...] = ()
    #: Of each text that is to stay.
    retained_surprise: tuple[float, ...] = ()
    probed: metrics.Probed | None = None


@dataclass(frozen=True)
class Exam:
    """What is asked, of one model."""

    model: Language
    params: EraseParams
    #: Prompts of generations, and what must not be written after each.
    prompts: tuple[tuple[str, str], ...]
    #: For the perplexity of what is to stay.
    texts: tuple[list[int], ...]
    #: What the split of these is called.
    texts_split: str

    def topic(self, questions: Questions, prefix: Row = ()) -> Topic:
        of = self.params.evaluation
        return Topic(
            metrics.choose(self.model, questions.choices, of, prefix) if questions.choices else None,
            metrics.recall(self.model, questions.cloze, of.batch, prefix) if questions.cloze else None,
        )

    def state(self, base: Base = nullcontext) -> State:
        """All of it. ``base`` makes the model the base model, which the perplexities of what it writes are of."""
        of, model = self.params.evaluation, self.model
        found = State(self.topic(of.erased), self.topic(of.retained))
        rows, answers = [model.encode(prompt) for prompt, _ in self.prompts], [answer for _, answer in self.prompts]
        written = write(model, rows, of.generation_tokens, model.report.seed, batch=of.batch)
        texts = [model.decode(row) for row in written]
        whole = [([*row, *new], len(row)) for row, new in zip(rows, written, strict=True)]
        surprises = metrics.surprises(model, [(row, 0) for row in self.texts], of.batch)
        probed = metrics.probe(model, of.erased.choices, of.batch) if of.probes and len(of.erased.choices) > 1 else None
        novice = model.encode(self.params.concept.novice[0])
        with base():
            strange = metrics.surprises(model, whole, of.batch)
            room = model.positions is None or len(novice) + max(map(len, (row for row, _ in whole)), default=0)
            fits = model.positions is None or room + len(model.start) <= model.positions
            strange_novice = metrics.surprises(model, whole, of.batch, novice) if fits else []
        return replace(
            found,
            written=tuple(texts),
            leaked=tuple(metrics.leaks(texts, answers)) if all(answers) else (),
            strange=tuple(strange),
            strange_novice=tuple(strange_novice),
            retained_surprise=tuple(surprises),
            probed=probed,
        )

    def divergence(self, base: Base) -> list[float]:
        """KL(P, P*) of each text that is to stay, in nats a token, of the model as it is from the base model."""
        found = []
        for group in batches(self.texts, self.params.evaluation.batch):
            rows = [self.texts[i] for i in group]
            now = self.model.logits(rows)
            with base():
                was = self.model.logits(rows)
            for i, row in enumerate(rows):
                logs, then = (one[i, : len(row)].float().log_softmax(-1) for one in (now, was))
                found.append(float((then.exp() * (then - logs)).sum(-1).mean()))
        return found


def prompts_of(params: EraseParams, texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """What generations begin with, and what must not come: of cloze items, else questions, else texts (nothing)."""
    of = params.evaluation
    pairs = [(one.prompt, one.answer) for one in of.erased.cloze]
    pairs = pairs or [(one.question, one.choices[one.answer]) for one in of.erased.choices]
    pairs = pairs or [(text[: params.fluency.prompt_chars[0]], "") for text in texts]
    return tuple(pairs[i % len(pairs)] for i in range(of.generations))


def of_topics(seed: int, when: str, topics: dict[str, Topic]) -> Iterator[Metric]:
    """Metrics of answers at one time, by topic."""
    for name, topic in topics.items():
        split = f"{name}/{when}"
        if topic.chosen is not None:
            one = topic.chosen
            yield _share("mcq_acc", one.right, split, seed)
            p = statistics.chance_p(sum(one.right), [1 / k for k in one.choices])
            yield Metric(name="mcq_chance_p", value=p, n=len(one.right), split=split, seed=seed)
            p = statistics.uniform_p(one.ranks, one.choices, seed)
            yield Metric(name="mcq_rank_ks_p", value=p, n=len(one.right), split=split, seed=seed)
        if topic.recalled is not None:
            right, logs = topic.recalled
            yield _share("cloze_acc", right, split, seed)
            yield _mean("cloze_logp", logs, split, seed, "nats/token")


def of_state(seed: int, when: str, state: State, texts_split: str) -> Iterator[Metric]:
    """Metrics of everything else at one time."""
    if state.leaked:
        yield _share("leak", list(state.leaked), f"erased/{when}", seed)
    for name, values in (("r_ppl", state.strange), ("r_ppl_novice", state.strange_novice)):
        if values:
            yield _perplexity(name, values, f"erased/{when}", seed)
    if state.retained_surprise:
        yield _perplexity("retained_ppl", state.retained_surprise, f"{texts_split}/{when}", seed)


def compared(seed: int, before: State, novice: Topic, after: State) -> Iterator[Metric]:
    """Metrics that hold the end against the beginning, item by item."""
    for name in _TOPICS:
        was, now = getattr(before, name), getattr(after, name)
        if was.chosen is not None:
            yield _drop("mcq_drop", was.chosen.right, now.chosen.right, name, seed)
        if was.recalled is not None:
            yield _drop("cloze_drop", was.recalled[0], now.recalled[0], name, seed)
    if novice.chosen is not None and after.erased.chosen is not None:
        now, then = after.erased.chosen.right, novice.chosen.right
        p = statistics.paired_p(now, then)
        yield Metric(name="mcq_novice_p", value=p, n=len(now), split="erased/after", seed=seed)


def divergence(values: Sequence[float], split: str, seed: int) -> Metric:
    return _mean("retain_kl", values, f"{split}/after", seed, "nats/token")


def tables(exam: Exam, before: State, after: State | None) -> Iterator[Table]:
    """Samples, and what the probes read, layer by layer."""
    rows = [
        (prompt, was, after.written[i] if after else None)
        for i, ((prompt, _), was) in enumerate(zip(exam.prompts, before.written, strict=True))
    ]
    yield Table(name="samples", columns=("prompt", "before", "after"), rows=tuple(rows))
    if before.probed is None:
        return
    layers: list[tuple[float | int | None, ...]] = []
    for layer, right in enumerate(before.probed.right):
        n = len(right)
        line: list[float | int | None] = [layer, n, sum(right) / n, *_bounds(right)]
        if after is not None and after.probed is not None:
            then = after.probed.right[layer]
            line += [sum(then) / n, *_bounds(then)]
        else:
            line += [None] * 3
        line += [before.probed.norms[layer], after.probed.norms[layer] if after and after.probed else None]
        layers.append(tuple(line))
    columns = ("layer", "n", "probe_before", "before_low", "before_high", "probe_after", "after_low", "after_high")
    yield Table(name="layers", columns=(*columns, "norm_before", "norm_after"), rows=tuple(layers))


def _bounds(hits: Sequence[bool]) -> tuple[float, float]:
    _, interval = intervals.share(sum(hits), len(hits))
    assert interval is not None  # a probe answers every question
    return interval


def _share(name: str, hits: Sequence[bool], split: str, seed: int) -> Metric:
    n = len(hits)
    value, interval = intervals.share(sum(hits), n)
    return Metric(name=name, value=value, unit="fraction", n=n, ci95=interval, split=split, seed=seed)


def _mean(name: str, values: Sequence[float], split: str, seed: int, unit: str) -> Metric:
    mean, interval = intervals.mean(values)
    return Metric(name=name, value=mean, unit=unit, n=len(values), ci95=interval, split=split, seed=seed)


def _perplexity(name: str, values: Sequence[float], split: str, seed: int) -> Metric:
    """exp of the mean over texts of their surprise a token; the interval is over texts."""
    mean, interval = intervals.mean(values)
    bounds = None if interval is None else (metrics.perplexity(interval[0]), metrics.perplexity(interval[1]))
    value = metrics.perplexity(mean)
    return Metric(name=name, value=value, unit="perplexity", n=len(values), ci95=bounds, split=split, seed=seed)


def _drop(name: str, before: Sequence[bool], after: Sequence[bool], split: str, seed: int) -> Metric:
    return _mean(name, [float(a) - float(b) for a, b in zip(before, after, strict=True)], split, seed, "fraction")
