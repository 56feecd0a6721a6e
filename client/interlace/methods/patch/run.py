"""Every state of one run in the other one's place, in both directions, many a forward."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.patch.spec import PatchParams, PatchResult
from interlace.methods.shared import capture
from interlace.methods.shared.capture import Patch
from interlace.methods.shared.prompts import check_length, first_token
from interlace.methods.shared.sites import Sites, evaluating
from interlace.protocol.errors import InvalidRequest

_SIDES = ("a", "b")
_LEAST = 1e-6  # logits: below, there is no difference to carry


def run(model: Any, params: PatchParams, report: Report) -> PatchResult:
    """See `PatchParams`. Raises InvalidRequest where both prompts or both answers are the same."""
    with evaluating(model), torch.no_grad():
        return _Patching(Sites.of(model), model.tokenizer, params, report).run()


class _Patching:
    def __init__(self, sites: Sites, tokenizer: Any, params: PatchParams, report: Report) -> None:
        self._params = params
        self._report = report
        self._tokenizer = tokenizer
        self._module = sites.module
        self._device = next(sites.module.parameters()).device
        layers = range(sites.n_layers) if params.layers is None else sorted(set(params.layers))
        self._places = {layer: sites.place(params.site, layer) for layer in layers}
        self._ids = self._both_ids()
        #: The positions of states that go with one another, in a and in b.
        self._aligned = aligned(*self._ids)

    def run(self) -> PatchResult:
        states, logits = self._both_runs()
        answers = self._answers(logits)
        clean = [float(self._margin(one, answers)) for one in logits]
        items = list(product(self._places, range(len(self._aligned))))
        rows: list[tuple[str, int, int, float, float]] = []
        metrics, warnings = [], self._unlike()
        for into, side in enumerate(_SIDES):
            margins = self._patched(into, states[1 - into], items, answers, done=into * len(items))
            gap = clean[1 - into] - clean[into]
            some = [
                (side, layer, at, margin, (margin - clean[into]) / gap)
                for (layer, at), margin in zip(items, margins, strict=False)
            ]
            if len(some) < len(items):
                warnings.append(f"Cancelled after {len(some)} of {len(items)} patches into {side}.")
            rows += some
            metrics.append(Metric(name="margin", value=clean[into], unit="logits", split=side))
            before_last = [row for row in some if row[2] < len(self._aligned) - 1] or some
            if before_last:
                peak = max(before_last, key=lambda row: row[4])
                where = f"into {side}, layer {peak[1]}, position {peak[2]}"
                metrics.append(Metric(name="peak", value=peak[4], unit="fraction", split=where))
        return PatchResult(
            metrics=tuple(metrics),
            tables=(
                Table(name="effects", columns=("into", "layer", "position", "margin", "effect"), rows=tuple(rows)),
                self._tokens(),
            ),
            warnings=tuple(warnings),
            answers=(self._tokenizer.decode([answers[0]]), self._tokenizer.decode([answers[1]])),
        )

    def _both_ids(self) -> tuple[list[int], list[int]]:
        a, b = (list(self._tokenizer(text)["input_ids"]) for text in (self._params.a, self._params.b))
        for side, ids in zip(_SIDES, (a, b), strict=True):
            check_length(self._module, len(ids), f"`params.{side}`")
        if a == b:
            raise InvalidRequest("`params.a` and `params.b` are the same tokens: nothing is different between them.")
        return a, b

    def _unlike(self) -> list[str]:
        """A warning, where one prompt has tokens that no state is put at."""
        a, b = self._ids
        if len(a) == len(b):
            return []
        side = len(b) > len(a)
        left = sorted(set(range(len(self._ids[side]))) - {pair[side] for pair in self._aligned})
        told = ", ".join(repr(self._tokenizer.decode([self._ids[side][one]])) for one in left[:8])
        return [
            f"a has {len(a)} tokens and b {len(b)}: they are put side by side from their common beginning and from "
            f"their ends, and {told} of {_SIDES[side]} has nothing beside it."
        ]

    def _tokens(self) -> Table:
        a, b = self._ids
        rows = [
            (number, *pair, self._tokenizer.decode([a[pair[0]]]), self._tokenizer.decode([b[pair[1]]]))
            for number, pair in enumerate(self._aligned)
        ]
        return Table(name="tokens", columns=("position", "at_a", "at_b", "a", "b"), rows=tuple(rows))

    def _both_runs(self) -> tuple[list[dict[int, Tensor]], list[Tensor]]:
        """Of each prompt: the states by layer [tokens, width], and the last logits [1, vocabulary]."""
        states, logits = [], []
        for side in range(2):
            with capture.captured(self._places) as found:
                logits.append(self._forward(torch.tensor([self._ids[side]])))
            states.append({layer: state[0] for layer, state in found.items()})
        return states, logits

    def _answers(self, logits: Sequence[Tensor]) -> tuple[int, int]:
        said = (self._params.answer_a, self._params.answer_b)
        found = [
            int(one.argmax()) if word is None else first_token(self._tokenizer, word)
            for word, one in zip(said, logits, strict=True)
        ]
        told = f"{self._tokenizer.decode([found[0]])!r}"
        if found[0] == found[1]:
            raise InvalidRequest(
                f"Both answers begin with the token {told}: nothing is to be told apart. Say two answers, `answer_a` "
                "and `answer_b`, that begin differently."
            )
        answers = (found[0], found[1])
        if abs(float(self._margin(logits[1], answers) - self._margin(logits[0], answers))) < _LEAST:
            raise InvalidRequest(f"The model prefers {told} as much after a as after b: there is nothing to carry.")
        return answers

    def _patched(
        self,
        into: int,
        states: dict[int, Tensor],
        items: Sequence[tuple[int, int]],
        answers: tuple[int, int],
        *,
        done: int,
    ) -> list[float]:
        """m with each (layer, aligned position) by itself as in the other run; fewer than there are, if cancelled."""
        found: list[float] = []
        for start in range(0, len(items), self._params.batch):
            if self._report.stopping:
                break
            some = items[start : start + self._params.batch]
            patches = []
            for layer in dict.fromkeys(layer for layer, _ in some):
                rows = torch.tensor([row for row, item in enumerate(some) if item[0] == layer])
                pairs = torch.tensor([self._aligned[item[1]] for item in some if item[0] == layer])
                values = states[layer][pairs[:, 1 - into].to(states[layer].device)]
                patches.append(Patch(self._places[layer], rows, pairs[:, into], values))
            with capture.patched(patches):
                logits = self._forward(torch.tensor([self._ids[into]]).expand(len(some), -1))
            found += self._margin(logits, answers).tolist()
            self._report.progress(done + len(found), 2 * len(items))
        return found

    def _margin(self, logits: Tensor, answers: tuple[int, int]) -> Tensor:
        """[rows], double"""
        wide = logits.double()
        return wide[:, answers[0]] - wide[:, answers[1]]

    def _forward(self, ids: Tensor) -> Tensor:
        self._report.count(forwards=1, tokens=ids.numel())
        return capture.last_logits(self._module, ids.to(self._device))


def aligned(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    """Positions of a and of b that go with one another: from the common beginning, and from the ends."""
    shorter = min(len(a), len(b))
    same = next((at for at in range(shorter) if a[at] != b[at]), shorter)
    return [(at, at) for at in range(same)] + [(len(a) - back, len(b) - back) for back in range(shorter - same, 0, -1)]
