"""What an edit has changed: probabilities of the new and the true object, before and after."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from interlace.methods.base import Metric, Report
from interlace.methods.rome.spec import Asked, Request
from interlace.methods.shared import capture, intervals
from interlace.methods.shared.prompts import check_length

#: Weighed against each other; of each, the mean over a request's prompts is one item.
_NAMES = ("ES", "PS", "NS")


@dataclass(frozen=True)
class Score:
    """Of one prompt and two objects of which one is right here."""

    #: P(right) > P(other).
    success: bool
    #: The first choice is the first token of what is right.
    first: bool
    #: P(right) - P(other), each the geometric mean over its tokens.
    gap: float
    #: P(right).
    p: float


@dataclass
class Judged:
    """Of one request, by name: a score of each prompt; None where it is not judged."""

    scores: dict[str, list[Score]] = field(default_factory=dict)


class Judge:
    """Scores requests under whatever edits the model has at the time."""

    def __init__(self, module: nn.Module, tokenizer: Any, batch: int, report: Report) -> None:
        self._module = module
        self._tokenizer = tokenizer
        self._batch = batch
        self._report = report

    def request(self, request: Request) -> Judged:
        """ES and PS (right: the new object), NS (right: the neighbour's own), other relations."""
        judged = Judged()
        new, true = request.target_new, request.target_true
        filled = [one.replace("{}", request.subject) for one in (request.prompt, *request.paraphrases)]
        if true is not None:
            scores = self._scores([(one, new, true) for one in filled])
            judged.scores["ES"], judged.scores["PS"] = scores[:1], scores[1:]
            judged.scores["NS"] = self._scores([(one.prompt, one.answer, new) for one in request.neighbours])
        else:
            judged.scores["new"] = self._scores([(one, new, new) for one in filled[:1]])
        judged.scores["other_relations"] = self.kept(request.other_relations)
        return judged

    def kept(self, asked: Sequence[Asked]) -> list[Score]:
        """Facts that are to stay."""
        return self._scores([(one.prompt, one.answer, one.answer) for one in asked])

    def _scores(self, items: Sequence[tuple[str, str, str]]) -> list[Score]:
        """Of (prompt, what is right, what is held against it)."""
        flat = [(text, word) for text, right, other in items for word in (right, other)]
        found: list[tuple[float, bool]] = []
        for start in range(0, len(flat), self._batch):
            found += self._likelihoods(flat[start : start + self._batch])
        return [
            Score(
                success=found[2 * at][0] > found[2 * at + 1][0],
                first=found[2 * at][1],
                gap=math.exp(found[2 * at][0]) - math.exp(found[2 * at + 1][0]),
                p=math.exp(found[2 * at][0]),
            )
            for at in range(len(items))
        ]

    def _likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each (prompt, word): the mean log probability of its tokens, whether the first is the first choice."""
        prompts = [self._tokenizer(text)["input_ids"] for text, _ in pairs]
        words = [self._tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"] for _, word in pairs]
        ids = capture.right_padded([[*one, *word[:-1]] for one, word in zip(prompts, words, strict=True)])
        check_length(self._module, ids.shape[1], "A prompt with its object")
        with torch.no_grad():
            logits = self._module(input_ids=ids.to(next(self._module.parameters()).device), use_cache=False).logits
        self._report.count(forwards=1, tokens=ids.numel())
        found = []
        for row, (one, word) in enumerate(zip(prompts, words, strict=True)):
            behind = logits[row, len(one) - 1 : len(one) - 1 + len(word)].double().log_softmax(-1).cpu()
            mean = behind[torch.arange(len(word)), torch.tensor(word)].mean()
            found.append((float(mean), int(behind[0].argmax()) == word[0]))
        return found


def known_only(requests: Sequence[Request], judged: Sequence[Judged], *, really: bool) -> list[Request]:
    """The requests with those neighbours and other relations only that the model knew before."""
    if not really:
        return list(requests)
    return [
        request.model_copy(
            update={
                "neighbours": _those(request.neighbours, before.scores.get("NS", [])),
                "other_relations": _those(request.other_relations, before.scores["other_relations"]),
            }
        )
        for request, before in zip(requests, judged, strict=True)
    ]


def _those(asked: Sequence[Asked], scores: Sequence[Score]) -> tuple[Asked, ...]:
    return tuple(one for one, score in zip(asked, scores, strict=False) if score.first)


def metrics(judged: Sequence[Judged], split: str) -> list[Metric]:
    """ES, PS, NS, their argmax versions and gaps, S, and other relations, with intervals over requests."""
    found: list[Metric] = []
    means: dict[str, float] = {}
    for name in _NAMES:
        mine = [one.scores[name] for one in judged if one.scores.get(name)]
        if not mine:
            continue
        for suffix, field_, unit in (
            ("", "success", "fraction"),
            ("_acc", "first", "fraction"),
            ("_diff", "gap", "probability"),
        ):
            values = [sum(float(getattr(score, field_)) for score in scores) / len(scores) for scores in mine]
            found.append(_metric(name + suffix, values, unit, split))
            means[name + suffix] = found[-1].value
    for suffix in ("", "_acc"):
        three = [means[name + suffix] for name in _NAMES if name + suffix in means]
        if len(three) == len(_NAMES):
            harmonic = len(three) / sum(1 / one for one in three) if min(three) > 0 else 0.0
            found.append(Metric(name="S" + suffix, value=harmonic, unit="fraction", n=len(judged), split=split))
    others = [one.scores["other_relations"] for one in judged if one.scores["other_relations"]]
    if others:
        values = [sum(score.first for score in scores) / len(scores) for scores in others]
        found.append(_metric("other_relations", values, "fraction", split))
    return found


def kept_metric(scores: Sequence[Sequence[Score]], split: str) -> Metric:
    """The share of unrelated facts that stay, over requests."""
    return _metric("unrelated", [sum(one.first for one in some) / len(some) for some in scores], "fraction", split)


def _metric(name: str, values: Sequence[float], unit: str, split: str) -> Metric:
    if unit == "fraction" and all(value in (0.0, 1.0) for value in values):
        value, interval = intervals.share(int(sum(values)), len(values))
    else:
        value, interval = intervals.mean(values)
    return Metric(name=name, value=value, unit=unit, n=len(values), ci95=interval, split=split)
