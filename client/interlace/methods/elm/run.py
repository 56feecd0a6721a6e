"""`elm.erase` from beginning to end: look, write fluency texts, train, look again, attack."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from interlace.methods.base import Metric, Report, Table
from interlace.methods.elm import guidance, measure, metrics
from interlace.methods.elm.adapter import Adapter, attached, places
from interlace.methods.elm.language import Language
from interlace.methods.elm.spec import EraseParams, EraseResult, Questions
from interlace.methods.elm.stopping import Watch
from interlace.methods.elm.train import Data, Trainer, unpacked
from interlace.protocol.errors import InvalidRequest

_LEAST_TOKENS = 2
_REFERENCE = "The perplexities of generations (r_ppl) are under the base model itself, which is not independent of it."


def run(model: Any, params: EraseParams, report: Report) -> EraseResult:
    """Train an adapter of ``model``, a local nnsight model, which is left as it was. Raises InvalidRequest."""
    language = Language.of(model, report)
    places(language.module, params.lora)  # refused before anything is run
    was_training = language.module.training
    language.module.eval()
    try:
        return _run(language, params, report)
    finally:
        language.module.train(was_training)


def _run(model: Language, params: EraseParams, report: Report) -> EraseResult:
    concept = [text for text in report.texts(params.concept_texts) if text.strip()]
    retain = report.texts(params.retain_texts)
    data = _data(model, params, concept, retain)
    exam = _exam(model, params, concept, data)
    warnings = [_REFERENCE] if exam.prompts else []
    before = exam.state()
    novice = exam.topic(params.evaluation.erased, model.encode(params.concept.novice[0]))
    resumed = report.resumed()
    fluent = unpacked(resumed.tensors) if resumed else []
    if params.lambdas[2] and not fluent and not report.stopping:
        fluent = guidance.fluent_texts(model, params, [text[: params.max_chars] for text in concept], report.seed)
    if params.lambdas[2] and not fluent and not report.stopping:
        raise InvalidRequest("The base model wrote nothing after any prompt: there is nothing for the fluency loss.")
    torch.manual_seed(report.seed)  # what the adapter begins with is the same, whatever came before
    with attached(model.module, params.lora) as adapter:
        held = params.stop_at_chance
        watch = None if held is None else Watch(model, adapter, held, params.evaluation)
        trainer = Trainer(model, adapter, params, replace(data, fluent=fluent), watch)
        if resumed:
            trainer.resume(resumed)
        done = trainer.train()
        after, looks = None, list[Table]()
        found = [*measure.of_topics(report.seed, "before", {"erased": before.erased, "retained": before.retained})]
        found += measure.of_state(report.seed, "before", before, exam.texts_split)
        found += measure.of_topics(report.seed, "novice", {"erased": novice})
        if done:
            after = exam.state(adapter.disabled)
            found += _after(exam, adapter, before, novice, after)
            if watch is not None:
                found += watch.metrics(report.seed)
                looks.append(watch.table())
                warnings += watch.warnings()
        else:
            warnings.append(
                f"Cancelled after {trainer.step} of {params.steps} updates: the adapter is of that moment, and what it "
                "does was not measured."
            )
        named = adapter.keep(report, "elm")
        attacked: list[Table] = []
        if done and params.evaluation.relearn_steps:
            metrics, table = _relearn(exam, adapter, data)
            found += metrics
            attacked.append(table)
    tables = (trainer.table(), *looks, *measure.tables(exam, before, after), *attacked)
    return EraseResult(metrics=tuple(found), tables=tables, artifacts=(named,), warnings=tuple(warnings), adapter=named)


def _data(model: Language, params: EraseParams, concept: Sequence[str], retain: Sequence[str]) -> Data:
    """Texts as ids, cut to where they fit in the model behind the longest prefix."""
    expert, novice = ([model.encode(prefix) for prefix in of] for of in (params.concept.expert, params.concept.novice))
    longest = max(map(len, [*expert, *novice])) + len(model.start)
    model.check_room(longest + _LEAST_TOKENS, "`concept`: the longest prefix and a text")
    room = None if model.positions is None else model.positions - longest
    rows = []
    for name, texts in (("concept_texts", concept), ("retain_texts", retain)):
        ids = [model.encode(text[: params.max_chars])[:room] for text in texts]
        ids = [row for row in ids if len(row) >= _LEAST_TOKENS]
        if not ids:
            raise InvalidRequest(f"`{name}` has no text of {_LEAST_TOKENS} tokens or more.")
        rows.append(ids)
    return Data(rows[0], rows[1], expert, novice, ())


def _exam(model: Language, params: EraseParams, concept: Sequence[str], data: Data) -> measure.Exam:
    of = params.evaluation
    if of.retained_texts is None:
        texts, split = [list(row) for row in data.retain], "train"
    else:
        texts = [model.encode(text[: params.max_chars]) for text in model.report.texts(of.retained_texts)]
        split = "retained"
    room = None if model.positions is None else model.positions - len(model.start)
    texts = [row[:room] for row in texts if len(row) >= _LEAST_TOKENS]
    prompts = measure.prompts_of(params, concept)
    if prompts:
        longest = max(len(model.encode(prompt)) for prompt, _ in prompts)
        model.check_room(longest + of.generation_tokens + len(model.start), "`evaluation.generation_tokens`")
    _check_questions(model, params)
    return measure.Exam(model, params, prompts, tuple(texts), split)


def _check_questions(model: Language, params: EraseParams) -> None:
    """Raises InvalidRequest for questions that have no place in the model, those on what is erased behind a prefix."""
    of, held, start = params.evaluation, params.stop_at_chance, len(model.start)
    prefix = len(model.encode(params.concept.novice[0]))
    asked = [("evaluation.erased", of.erased, prefix), ("evaluation.retained", of.retained, 0)]
    if held is not None:
        asked += [
            ("stop_at_chance.erased", Questions(choices=held.erased), 0),
            ("stop_at_chance.retained", held.retained, 0),
        ]
    for name, some, before in asked:
        if needed := metrics.longest(model, some, of):
            model.check_room(start + before + needed, f"The longest question of `{name}`")


def _after(
    exam: measure.Exam, adapter: Adapter, before: measure.State, novice: measure.Topic, after: measure.State
) -> list[Metric]:
    seed = exam.model.report.seed
    found = [*measure.of_topics(seed, "after", {"erased": after.erased, "retained": after.retained})]
    found += measure.of_state(seed, "after", after, exam.texts_split)
    found += measure.compared(seed, before, novice, after)
    if exam.texts:
        found.append(measure.divergence(exam.divergence(adapter.disabled), exam.texts_split, seed))
    return found


def _relearn(exam: measure.Exam, adapter: Adapter, data: Data) -> tuple[list[Metric], Table]:
    """The attack: next-token training of the adapter on the concept's texts, then the erased topic once more."""
    model, params, report = exam.model, exam.params, exam.model.report
    optimizer = torch.optim.AdamW(adapter.parameters.values(), lr=params.lr)
    size = params.batch * params.grad_accum
    losses = []
    for step in range(params.evaluation.relearn_steps):
        if report.stopping:
            break
        rows = [data.concept[i % len(data.concept)] for i in range(step * size, (step + 1) * size)]
        logits = model.logits(rows, backward=True)
        logs = [logits[i, : len(row) - 1].float().log_softmax(-1) for i, row in enumerate(rows)]
        tokens = [torch.tensor(row[1:], device=logits.device)[:, None] for row in rows]
        loss = -torch.cat([one.gather(-1, token) for one, token in zip(logs, tokens, strict=True)]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((step + 1, loss.item()))
    topic = exam.topic(params.evaluation.erased)
    table = Table(name="relearning", columns=("step", "loss"), rows=tuple(losses))
    return [*measure.of_topics(report.seed, "relearned", {"erased": topic})], table
