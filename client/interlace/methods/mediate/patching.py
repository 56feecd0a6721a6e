"""Pairs of runs, what may be patched between them, and what exactly a patch does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Report
from interlace.methods.mediate.basis import Basis, Plain, Unit, by_place, spread
from interlace.methods.mediate.pair_spec import Pair
from interlace.methods.shared import capture
from interlace.methods.shared.prompts import first_token
from interlace.methods.shared.sites import Place, Sites
from interlace.protocol.errors import InvalidRequest


@dataclass(frozen=True)
class Runs:
    """All pairs, of one number of tokens: [n, tokens] each, and their answers [n]."""

    base: Tensor
    source: Tensor
    answer: Tensor
    source_answer: Tensor

    @classmethod
    def of(cls, tokenizer: Any, pairs: Sequence[Pair], where: str = "params.pairs") -> "Runs":
        """Raises InvalidRequest where prompts are not of one number of tokens."""
        sides = []
        for side in ("base", "source"):
            sides.append([tokenizer(getattr(pair, side))["input_ids"] for pair in pairs])
        lengths = sorted({len(row) for rows in sides for row in rows})
        if len(lengths) > 1:
            raise InvalidRequest(
                f"`{where}` has prompts of {lengths[0]} and of {lengths[-1]} tokens; a state is put where another "
                "one was, token by token, so that all must have as many."
            )
        answers = [
            torch.tensor([first_token(tokenizer, getattr(pair, name)) for pair in pairs])
            for name in ("answer", "source_answer")
        ]
        return cls(torch.tensor(sides[0]), torch.tensor(sides[1]), *answers)

    def __len__(self) -> int:
        return len(self.base)

    @property
    def tokens(self) -> int:
        return int(self.base.shape[1])

    def margin(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """m: [rows] of [rows, vocabulary]."""
        at = torch.arange(len(rows), device=logits.device)
        picked = list(rows)
        return logits[at, self.answer[picked]] - logits[at, self.source_answer[picked]]


class Patcher:
    """What a model does with patches. ``into`` is the run that is patched, ``out_of`` the one that states are from."""

    def __init__(
        self,
        sites: Sites,
        runs: Runs,
        batch: int,
        report: Report,
        *,
        basis: Basis | None = None,
        into_source: bool = False,
    ) -> None:
        self.sites = sites
        self.runs = runs
        self.batch = batch
        self.report = report
        self.basis: Basis = basis or Plain()
        self.into = runs.source if into_source else runs.base
        self.out_of = runs.base if into_source else runs.source
        self.rows = 0
        self._device = next(sites.module.parameters()).device

    def batches(self, numbers: Sequence[int] | None = None) -> list[list[int]]:
        """Pairs, by their numbers, in rows of a forward; all of them for None."""
        every = list(range(len(self.runs)) if numbers is None else numbers)
        return [every[start : start + self.batch] for start in range(0, len(every), self.batch)]

    def place(self, unit: Unit) -> Place:
        return self.sites.place(unit.site, unit.layer)

    def margins(self, side: Tensor) -> Tensor:
        """m of each pair in its base or in its source run, [n], double."""
        found = [self.runs.margin(self.logits(side[rows], []), rows).double().cpu() for rows in self.batches()]
        return torch.cat(found)

    def states(self, places: Sequence[Place], rows: Sequence[int], *, into: bool) -> list[Tensor]:
        """[rows, tokens, width] at each place, in the run that is patched or in the other one."""
        with torch.no_grad(), capture.captured(dict(enumerate(places))) as states:
            self.logits((self.into if into else self.out_of)[list(rows)], [])
        return [states[number].detach() for number in range(len(places))]

    def exact(self, units: Sequence[Unit]) -> Tensor:
        """m of each pair when each unit by itself is as in the other run: [units, n], double. One patch a row."""
        found = torch.empty(len(units), len(self.runs), dtype=torch.float64)
        for numbers in by_place(units).values():
            place = self.place(units[numbers[0]])
            for rows in self.batches():
                (donor,) = self.states([place], rows, into=False)
                items = [(number, row) for number in numbers for row in range(len(rows))]
                for start in range(0, len(items), self.batch):
                    some = items[start : start + self.batch]
                    patch = self._patch(place, [units[number] for number, _ in some], donor[[row for _, row in some]])
                    picked = [rows[row] for _, row in some]
                    with torch.no_grad():
                        margins = self.runs.margin(self.logits(self.into[picked], [patch]), picked)
                    for (number, row), margin in zip(some, margins.double().tolist(), strict=True):
                        found[number, rows[row]] = margin
                    self.rows += len(some)
                self.report.progress(self.rows, len(units) * len(self.runs))
        return found

    def _patch(self, place: Place, units: Sequence[Unit], donor: Tensor) -> tuple[Place, capture.Change]:
        """Row i has what ``units[i]`` is in ``donor[i]``."""
        one = torch.ones(1, device=donor.device)
        size = self.basis.size(donor.shape[-1])
        weight = torch.stack([spread([unit], one, donor.shape[1], size) for unit in units])
        return place, lambda state: self.basis.moved(state, donor, weight)

    def logits(self, ids: Tensor, changes: Sequence[tuple[Place, capture.Change]]) -> Tensor:
        """At the last token, [rows, vocabulary], of a run with these changes."""
        self.report.count(forwards=1, tokens=ids.numel())
        with capture.altered(changes):
            return capture.last_logits(self.sites.module, ids.to(self._device))
