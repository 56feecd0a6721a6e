"""Pairs of runs, what may be patched between them, and what a patch does: exactly, or by a gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.methods import _capture
from interlace.methods._prompts import first_token
from interlace.methods._sites import Place, Sites
from interlace.methods.base import Report
from interlace.methods.mediate.spec import Pair
from interlace.protocol.errors import InvalidRequest


class Unit(NamedTuple):
    """One mediator: some of a place's state."""

    site: str
    layer: int
    #: A token from 0; None for all.
    position: int | None
    #: Of the state's last dimension; None for all.
    number: int | None = None


@dataclass(frozen=True)
class Runs:
    """All pairs, of one number of tokens: [n, tokens] each, and their answers [n]."""

    base: Tensor
    source: Tensor
    answer: Tensor
    source_answer: Tensor

    @classmethod
    def of(cls, tokenizer: Any, pairs: Sequence[Pair]) -> "Runs":
        """Raises InvalidRequest where prompts are not of one number of tokens."""
        sides = []
        for side in ("base", "source"):
            sides.append([tokenizer(getattr(pair, side))["input_ids"] for pair in pairs])
        lengths = sorted({len(row) for rows in sides for row in rows})
        if len(lengths) > 1:
            raise InvalidRequest(
                f"`params.pairs` has prompts of {lengths[0]} and of {lengths[-1]} tokens; a state is put where another "
                "one was, token by token, so that all must have as many."
            )
        answers = [
            torch.tensor([first_token(tokenizer, getattr(pair, name)) for pair in pairs])
            for name in ("answer", "source_answer")
        ]
        return cls(torch.tensor(sides[0]), torch.tensor(sides[1]), *answers)

    def __len__(self) -> int:
        return len(self.base)

    def margin(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """m: [rows] of [rows, vocabulary]."""
        at = torch.arange(len(rows), device=logits.device)
        picked = list(rows)
        return logits[at, self.answer[picked]] - logits[at, self.source_answer[picked]]


class Patcher:
    """What a model does with patches. ``into`` is the run that is patched, ``out_of`` the one that states are from."""

    def __init__(self, sites: Sites, runs: Runs, batch: int, report: Report, *, into_source: bool) -> None:
        self._sites = sites
        self._runs = runs
        self._batch = batch
        self._report = report
        self._device = next(sites.module.parameters()).device
        self._into = runs.source if into_source else runs.base
        self._out_of = runs.base if into_source else runs.source
        self.rows = 0

    def batches(self) -> list[list[int]]:
        every = list(range(len(self._runs)))
        return [every[start : start + self._batch] for start in range(0, len(every), self._batch)]

    def place(self, unit: Unit) -> Place:
        return self._sites.place(unit.site, unit.layer)

    def margins(self, side: Tensor) -> Tensor:
        """m of each pair in its base or in its source run, [n], double."""
        found = [self._runs.margin(self._logits(side[rows], []), rows).double().cpu() for rows in self.batches()]
        return torch.cat(found)

    def states(self, places: Sequence[Place], rows: Sequence[int], *, into: bool) -> list[Tensor]:
        """[rows, tokens, width] at each place, in the run that is patched or in the other one."""
        with torch.no_grad(), _capture.captured(dict(enumerate(places))) as states:
            self._logits((self._into if into else self._out_of)[rows], [])
        return [states[number].detach() for number in range(len(places))]

    def exact(self, units: Sequence[Unit]) -> Tensor:
        """m of each pair when each unit by itself is as in the other run: [units, n], double. One patch a row."""
        found = torch.empty(len(units), len(self._runs), dtype=torch.float64)
        by_place: dict[tuple[str, int], list[int]] = {}
        for number, unit in enumerate(units):
            by_place.setdefault((unit.site, unit.layer), []).append(number)
        for numbers in by_place.values():
            place = self.place(units[numbers[0]])
            for rows in self.batches():
                (donor,) = self.states([place], rows, into=False)
                items = [(number, row) for number in numbers for row in range(len(rows))]
                for start in range(0, len(items), self._batch):
                    some = items[start : start + self._batch]
                    patch = _patch(place, [units[number] for number, _ in some], donor[[row for _, row in some]])
                    picked = [rows[row] for _, row in some]
                    with torch.no_grad():
                        margins = self._runs.margin(self._logits(self._into[picked], [patch]), picked)
                    for (number, row), margin in zip(some, margins.double().tolist(), strict=True):
                        found[number, rows[row]] = margin
                    self.rows += len(some)
                self._report.progress(self.rows, len(units) * len(self._runs))
        return found

    def slopes(self, places: Sequence[Place], rows: Sequence[int], at: float) -> list[tuple[Tensor, Tensor]]:
        """At each place (dm/dz, what z changes by) [rows, tokens, width], with z ``at`` of the way to the other run.

        Several places are read in the run as it is only: ``at`` is 0 for them.
        """
        donors = self.states(places, rows, into=False)
        here = self.states(places, rows, into=True)
        leaves: list[Tensor] = [torch.empty(0)] * len(places)

        def opened(number: int) -> _capture.Change:
            def change(state: Tensor) -> Tensor:
                moved = state + at * (donors[number] - here[number]) if at else state + 0
                if not moved.requires_grad:
                    moved.requires_grad_(True)
                leaves[number] = moved
                return moved

            return change

        with torch.enable_grad():
            changes = [(place, opened(number)) for number, place in enumerate(places)]
            total = self._runs.margin(self._logits(self._into[rows], changes), rows).sum()
            gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        self._report.count(backwards=1)
        found = []
        for gradient, donor, own in zip(gradients, donors, here, strict=True):
            slope = torch.zeros_like(own) if gradient is None else gradient
            found.append((slope.double().cpu(), (donor - own).double().cpu()))
        return found

    def _logits(self, ids: Tensor, changes: Sequence[tuple[Place, _capture.Change]]) -> Tensor:
        self._report.count(forwards=1, tokens=ids.numel())
        with _capture.altered(changes):
            return _capture.last_logits(self._sites.module, ids.to(self._device))


def _patch(place: Place, units: Sequence[Unit], donor: Tensor) -> tuple[Place, _capture.Change]:
    """Row i has what ``units[i]`` is in ``donor[i]``."""

    def change(state: Tensor) -> Tensor:
        changed = state.clone()
        for row, unit in enumerate(units):
            at = slice(None) if unit.position is None else slice(unit.position, unit.position + 1)
            of = slice(None) if unit.number is None else slice(unit.number, unit.number + 1)
            changed[row, at, of] = donor[row, at, of]
        return changed

    return place, change


def approximate(patcher: Patcher, units: Sequence[Unit], steps: int, report: Report) -> Tensor:
    """What patching each unit would change m by, by one gradient (``steps`` 0) or their mean on the way: [units, n]."""
    places = list(dict.fromkeys((unit.site, unit.layer) for unit in units))
    found = torch.empty(len(units), sum(map(len, patcher.batches())), dtype=torch.float64)
    groups = [places] if not steps else [[one] for one in places]
    done = 0
    for rows in patcher.batches():
        for group in groups:
            here = [patcher.place(Unit(site, layer, None)) for site, layer in group]
            points = [(step + 0.5) / steps for step in range(steps)] or [0.0]
            runs = [patcher.slopes(here, rows, at) for at in points]
            for number, key in enumerate(group):
                slope = torch.stack([run[number][0] for run in runs]).mean(0)
                parts = slope * runs[0][number][1]
                for index, unit in enumerate(units):
                    if (unit.site, unit.layer) == key:
                        found[index, rows] = _sum(parts, unit)
            done += 1
            report.progress(done, len(groups) * len(patcher.batches()))
    return found


def _sum(parts: Tensor, unit: Unit) -> Tensor:
    """[rows] of [rows, tokens, width]"""
    some = parts if unit.position is None else parts[:, unit.position : unit.position + 1]
    return (some if unit.number is None else some[..., unit.number : unit.number + 1]).sum((1, 2))


def spearman(first: Tensor, second: Tensor) -> float:
    """Of two rows of numbers, ties by their mean rank; NaN where one is constant."""
    ranks = [_ranks(one) - (len(one) - 1) / 2 for one in (first, second)]
    norm = float(ranks[0].norm() * ranks[1].norm())
    return float(ranks[0] @ ranks[1]) / norm if norm else float("nan")


def _ranks(values: Tensor) -> Tensor:
    below = (values[None, :] < values[:, None]).sum(1)
    same = (values[None, :] == values[:, None]).sum(1)
    return below.double() + (same.double() - 1) / 2
