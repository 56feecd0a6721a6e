"""What a model knows: multiple choice, cloze, leaks, perplexities and what linear probes read in its layers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interlace.methods.elm.language import Language, Row, batches
from interlace.methods.elm.spec import Cloze, Evaluation, Question, Questions
from interlace.protocol.errors import InvalidRequest

_FOLDS = 5
_RIDGE = 0.1  # of the features' variance


@dataclass(frozen=True)
class Chosen:
    """Answers to questions of multiple choice."""

    right: list[bool]
    #: Of the right choice, from 0 for the likeliest.
    ranks: list[int]
    choices: list[int]


def choose(model: Language, questions: Sequence[Question], of: Evaluation, prefix: Row = ()) -> Chosen:
    """What the model chooses, with a prefix before each question."""
    if of.scoring == "letters":
        scores = _letters(model, questions, of.batch, prefix)
    else:
        scores = _answers(model, questions, of.batch, prefix)
    ranks = [_rank(row, one.answer) for row, one in zip(scores, questions, strict=True)]
    return Chosen([not rank for rank in ranks], ranks, [len(one.choices) for one in questions])


def _rank(scores: Sequence[float], answer: int) -> int:
    """Of the right choice. Of equal ones the first is the likeliest, as lm-evaluation-harness takes them: in 16 bits
    they are frequent, and none is for the right one. What is no number is last."""
    own = scores[answer]
    return sum(not (own > other or (own == other and at > answer)) for at, other in enumerate(scores)) - 1


def _letters(model: Language, questions: Sequence[Question], batch: int, prefix: Row) -> list[list[float]]:
    """Log-probabilities of " A", " B"... after the question and its options, as lm-evaluation-harness asks."""
    rows = [[*prefix, *model.encode(listed(one))] for one in questions]
    letters = [model.encode(f" {chr(65 + i)}")[-1] for i in range(max(len(one.choices) for one in questions))]
    if len(set(letters)) < len(letters):
        raise InvalidRequest(
            "`evaluation.scoring` is `letters`, and this model's tokenizer has one token for several of the letters A, "
            "B...: nothing could be told from it. `answers` compares the choices' own texts."
        )
    scores: list[list[float]] = []
    for group in batches(rows, batch):
        logits = model.logits([rows[i] for i in group])
        for place, i in enumerate(group):
            last = logits[place, len(rows[i]) - 1].float().log_softmax(-1)
            scores.append(last[letters[: len(questions[i].choices)]].tolist())
    return scores


def listed(one: Question) -> str:
    """A question with its options, up to where the letter of the answer comes."""
    options = "".join(f"{chr(65 + i)}. {choice}\n" for i, choice in enumerate(one.choices))
    return f"{one.question}\n{options}Answer:"


def _answers(model: Language, questions: Sequence[Question], batch: int, prefix: Row) -> list[list[float]]:
    """Log-probability a byte of each choice's text after the question."""
    asked = [(i, choice) for i, one in enumerate(questions) for choice in one.choices]
    begun = [[*prefix, *model.encode(one.question)] for one in questions]
    rows = [[*begun[i], *model.encode(f" {choice}")] for i, choice in asked]
    logs = _continuations(model, rows, [len(begun[i]) for i, _ in asked], batch)
    scores: list[list[float]] = [[] for _ in questions]
    for (i, choice), row in zip(asked, logs, strict=True):
        scores[i].append(float(row.sum()) / len(choice.encode()))
    return scores


def _continuations(model: Language, rows: Sequence[Row], begins: Sequence[int], batch: int) -> list[Tensor]:
    """Log-probabilities, in nats, of the tokens of each row from ``begins`` on."""
    found = []
    for group in batches(rows, batch):
        logits = model.logits([rows[i] for i in group])
        for place, i in enumerate(group):
            begin = max(begins[i], 1)
            tokens = torch.tensor(rows[i][begin:], dtype=torch.long, device=logits.device)
            logs = logits[place, begin - 1 : len(rows[i]) - 1].float().log_softmax(-1)
            found.append(logs.gather(-1, tokens[:, None])[:, 0].cpu())
    return found


def recall(model: Language, items: Sequence[Cloze], batch: int, prefix: Row = ()) -> tuple[list[bool], list[float]]:
    """Whether each answer is what greedy decoding goes on with; and its log-probability, nats a token."""
    right, logs = [], []
    for group in batches(items, batch):
        begun = [[*prefix, *model.encode(items[i].prompt)] for i in group]
        rows = [[*row, *model.encode(f" {items[i].answer}")] for row, i in zip(begun, group, strict=True)]
        logits = model.logits(rows)
        for place, (start, row) in enumerate(zip(begun, rows, strict=True)):
            now = logits[place, len(start) - 1 : len(row) - 1].float().log_softmax(-1)
            tokens = torch.tensor(row[len(start) :], device=now.device)
            right.append(bool((now.argmax(-1) == tokens).all()))
            logs.append(now.gather(-1, tokens[:, None]).mean().item())
    return right, logs


def longest(model: Language, asked: Questions, of: Evaluation) -> int:
    """Tokens of the longest row that these questions need, without a prefix; 0 of none."""
    rows = [model.encode(f"{one.prompt} {one.answer}") for one in asked.cloze]
    if of.scoring == "letters":
        rows += [model.encode(listed(one)) for one in asked.choices]
    if of.scoring == "answers" or of.probes:
        rows += [
            [*model.encode(one.question), *model.encode(f" {choice}")]
            for one in asked.choices
            for choice in one.choices
        ]
    return max(map(len, rows), default=0)


def leaks(texts: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Whether what was written on each prompt has its answer in it."""
    return [answer.lower() in text.lower() for text, answer in zip(texts, answers, strict=True)]


def surprises(model: Language, rows: Sequence[tuple[Row, int]], batch: int, prefix: Row = ()) -> list[float]:
    """Of each row, from its given token on: the mean surprise in nats a token. Rows with nothing there are left out."""
    some = [([*prefix, *row], len(prefix) + begin) for row, begin in rows if len(row) > max(begin, 1 - len(prefix))]
    logs = _continuations(model, [row for row, _ in some], [begin for _, begin in some], batch)
    return [-float(one.mean()) for one in logs]


def perplexity(surprise: float) -> float:
    return math.exp(min(surprise, 700.0))


@dataclass(frozen=True)
class Probed:
    """Of each layer, 0 the embedding: what a probe chooses right, and how long the states are."""

    right: list[list[bool]]
    norms: list[float]


def probe(model: Language, questions: Sequence[Question], batch: int) -> Probed:
    """Linear probes: each choice's last state, right or wrong, by ridge regression; chosen is what scores highest.

    Five folds of whole questions; each is answered by the probe of the other four. Chance is one of the choices.
    """
    rows, owner, labels = [], [], []
    for i, one in enumerate(questions):
        begun = model.encode(one.question)
        for j, choice in enumerate(one.choices):
            rows.append([*begun, *model.encode(f" {choice}")])
            owner.append(i)
            labels.append(1.0 if j == one.answer else -1.0)
    states = torch.cat([model.states([rows[i] for i in group]) for group in batches(rows, batch)], 1).double()
    owners, wanted = torch.tensor(owner), torch.tensor(labels, dtype=torch.float64)
    answers = [_read(layer, owners, wanted, len(questions)) for layer in states]
    return Probed(answers, states.norm(dim=-1).mean(-1).tolist())


def _read(states: Tensor, owners: Tensor, wanted: Tensor, n: int) -> list[bool]:
    right = [False] * n
    for fold in range(_FOLDS):
        held = owners % _FOLDS == fold
        if held.all() or not held.any():
            continue
        weights, center = _ridge(states[~held], wanted[~held])
        scores = (states - center) @ weights
        for i in set(owners[held].tolist()):
            mine = owners == i
            right[i] = bool(wanted[mine][scores[mine].argmax()] > 0)
    return right


def _ridge(states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and the states' mean, through the smaller of the two Gram matrices."""
    center = states.mean(0)
    x, y = states - center, wanted - wanted.mean()
    rows, width = x.shape
    strength = _RIDGE * float(x.square().sum()) / max(1, min(rows, width)) + 1e-12
    if rows < width:
        return x.mT @ torch.linalg.solve(x @ x.mT + strength * torch.eye(rows, dtype=x.dtype), y), center
    return torch.linalg.solve(x.mT @ x + strength * torch.eye(width, dtype=x.dtype), x.mT @ y), center
