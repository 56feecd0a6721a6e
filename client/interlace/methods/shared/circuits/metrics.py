"""The number m of a forward that a circuit explains, for each example; the grammar is `examples.MetricName`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from interlace.methods.base import Opened, Report
from interlace.methods.shared.capture import captured, last_logits
from interlace.methods.shared.circuits.examples import Example, MetricName, Probing
from interlace.methods.shared.prompts import first_token
from interlace.methods.shared.sites import Place, Sites
from interlace.protocol.errors import InvalidArtifact, InvalidRequest


class Measure(Protocol):
    """m of a forward."""

    @property
    def report(self) -> Report:
        """What is told of costs."""

    def __call__(self, ids: Tensor, numbers: Sequence[int]) -> Tensor:
        """One forward on ``ids`` [n, tokens]; m [n] of it, each as example ``numbers[i]`` asks. Gradients go through
        where they are enabled."""


@dataclass(frozen=True)
class LogitMetric:
    """`logit_diff`, `logprob`, `neg_logprob`, and `logit` (of the answer, over the mean of all tokens', without which
    what raises every logit alike would count), of the logits at the last token."""

    name: MetricName | Literal["logit"]
    sites: Sites
    report: Report
    #: [examples], token ids; -1 in `others` for none.
    answers: Tensor
    others: Tensor

    def __call__(self, ids: Tensor, numbers: Sequence[int]) -> Tensor:
        self.report.count(forwards=1, tokens=ids.numel())
        device = next(self.sites.module.parameters()).device
        logits = last_logits(self.sites.module, ids.to(device)).float()
        rows, picked = torch.arange(len(ids), device=logits.device), list(numbers)
        if self.name == "logit_diff":
            return logits[rows, self.answers[picked]] - logits[rows, self.others[picked]]
        if self.name == "logit":
            return logits[rows, self.answers[picked]] - logits.mean(-1)
        found = logits.log_softmax(-1)[rows, self.answers[picked]]
        return found if self.name == "logprob" else -found


@dataclass(frozen=True)
class ProbeMetric:
    """`probe_logit`: a linear head on states."""

    sites: Sites
    report: Report
    place: Place
    #: [classes, width], [classes]
    weight: Tensor
    bias: Tensor
    #: Whether the head reads the mean over tokens; else the last.
    of_mean: bool
    #: [examples], classes; -1 in `others` for none.
    answers: Tensor
    others: Tensor
    #: Tokens at a prompt's beginning that are not in the mean.
    skip_first: int = 0

    def __call__(self, ids: Tensor, numbers: Sequence[int]) -> Tensor:
        self.report.count(forwards=1, tokens=ids.numel())
        device = next(self.sites.module.parameters()).device
        with captured({"": self.place}) as states:
            last_logits(self.sites.module, ids.to(device))
        state = states[""].float()
        read = state[:, min(self.skip_first, state.shape[1] - 1) :].mean(1) if self.of_mean else state[:, -1]
        said = read @ self.weight.to(read.device).mT + self.bias.to(read.device)
        rows, picked = torch.arange(len(ids), device=said.device), list(numbers)
        found = said[rows, self.answers[picked]]
        others = self.others[picked].to(said.device)
        return found - torch.where(others >= 0, said[rows, others.clamp_min(0)], 0.0)


def measure(
    name: MetricName, sites: Sites, tokenizer: Any, examples: Sequence[Example], report: Report, head: Probing | None
) -> Measure:
    """m as the parameters name it. Raises InvalidRequest where an example or the head lacks what it needs."""
    if name == "probe_logit":
        if head is None:
            raise InvalidRequest("`metric: probe_logit` needs `head`: a probe of a text's class.")
        return probe_metric(sites, report, report.open(head.probe, "probe"), head.layer, examples)
    if name == "logit_diff" and any(one.patch_answer is None for one in examples):
        raise InvalidRequest("`metric: logit_diff` needs `patch_answer` of every example; `logprob` does not.")
    answers = [first_token(tokenizer, one.answer) for one in examples]
    others = [-1 if one.patch_answer is None else first_token(tokenizer, one.patch_answer) for one in examples]
    return LogitMetric(name, sites, report, torch.tensor(answers), torch.tensor(others))


def probe_metric(
    sites: Sites, report: Report, opened: Opened, layer: int | None, examples: Sequence[Example]
) -> ProbeMetric:
    """Of an artifact whose tensors `LAYER.label` are [classes, width], and `LAYER.label.bias` [classes] where there is
    one; its configuration has `site`, `classes`, `position`: `last` or `mean`, and `skip_first`, tokens that are not in
    the mean. Raises InvalidArtifact, InvalidRequest.
    """
    config, ref = opened.config, opened.ref
    classes, position = config.get("classes"), config.get("position")
    if config.get("kind") != "label" or not isinstance(classes, list) or position not in ("last", "mean"):
        raise InvalidArtifact(f"{ref} is no probe of a text's class; `probe.train` makes one: `target.kind: label`.")
    layers = sorted(int(name.split(".")[0]) for name in opened.tensors if name.endswith((".label", ".label.B")))
    if layer is None and len(layers) == 1:
        layer = layers[0]
    if layer not in layers:
        raise InvalidRequest(f"`head.layer` is {layer}; {ref} has probes of the layers {layers}.")
    skip = config.get("skip_first") or 0
    if type(skip) is not int or skip < 0:
        raise InvalidArtifact(f"{ref} has skip_first={str(skip)[:32]!r}; expected a number of tokens.")
    weight = opened.tensors.get(f"{layer}.label")
    if weight is None:  # of low rank
        weight = opened.tensors[f"{layer}.label.B"] @ opened.tensors[f"{layer}.label.A"]
    bias = opened.tensors.get(f"{layer}.label.bias", torch.zeros(len(classes)))
    place = sites.place(str(config.get("site") or "resid_post"), layer)
    if weight.ndim != 2 or len(weight) != len(classes) or bias.shape != weight.shape[:1]:
        raise InvalidArtifact(f"{ref}: the probe of layer {layer} must be [{len(classes)}, width].")
    numbers = []
    for one in examples:
        for name in (one.answer, one.patch_answer):
            if name is not None and name not in classes:
                raise InvalidRequest(f"{name[:64]!r} is no class of {ref}; it has {', '.join(map(str, classes[:20]))}.")
        other = -1 if one.patch_answer is None else classes.index(one.patch_answer)
        numbers.append((classes.index(one.answer), other))
    answers, others = torch.tensor(numbers).unbind(1)
    return ProbeMetric(sites, report, place, weight.float(), bias.float(), position == "mean", answers, others, skip)
