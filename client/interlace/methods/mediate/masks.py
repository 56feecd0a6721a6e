"""Differential binary masking: a sparse set of mediators which, taken from another run, bring the other run's answer.

De Cao et al. 2020 have masks learned by gradients; Davies et al. 2023, over components with values of another run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from interlace.methods.mediate.basis import Unit, by_place, spread
from interlace.methods.mediate.patching import Patcher
from interlace.methods.shared import capture
from interlace.methods.shared.sites import Place


@dataclass(frozen=True)
class Schedule:
    """How a mask is looked for. At step t of ``steps``, t from 0 to 1, the loss is -log p(the source's answer) + t
    ``sparsity`` mean(sigmoid(w / T)), T going from the first to the last temperature by one factor a step."""

    steps: int
    lr: float
    sparsity: float
    temperature: tuple[float, float]

    def at(self, step: int) -> tuple[float, float]:
        """Temperature and weight of the mean."""
        share = step / max(self.steps - 1, 1)
        first, last = self.temperature
        return float(first * (last / first) ** share), self.sparsity * share


@dataclass
class Masked:
    """Runs of a model in which each unit is as far on its way to the other run as a mask says."""

    patcher: Patcher
    units: Sequence[Unit]
    #: (step, loss, units on, temperature, weight of the mean) of a search.
    curve: list[tuple[int, float, int, float, float]] = field(default_factory=list)

    def logits(self, mask: Tensor, rows: Sequence[int]) -> Tensor:
        """[rows, vocabulary], with a mask [units] from 0 to 1."""
        groups = by_place(self.units)
        places = [self.patcher.sites.place(*key) for key in groups]
        donors = self.patcher.states(places, rows, into=False)
        changes = [
            self._change(place, [self.units[one] for one in numbers], mask[numbers], donor)
            for place, numbers, donor in zip(places, groups.values(), donors, strict=True)
        ]
        return self.patcher.logits(self.patcher.into[list(rows)], changes)

    def margins(self, mask: Tensor) -> Tensor:
        """m of all pairs, [n], double."""
        with torch.no_grad():
            found = [self.patcher.runs.margin(self.logits(mask, rows), rows) for rows in self.patcher.batches()]
        return torch.cat(found).double().cpu()

    def hits(self, mask: Tensor, rows: Sequence[int]) -> int:
        """Of how many pairs the model's first choice is the source's answer."""
        found = 0
        for some in self.patcher.batches(rows):
            with torch.no_grad():
                said = self.logits(mask, some).argmax(-1).cpu()
            found += int((said == self.patcher.runs.source_answer[some]).sum())
        return found

    def learned(self, train: Sequence[int], schedule: Schedule, seed: int) -> Tensor:
        """The mask, of 0 and 1 [units]: 1 where w > 0 in the end."""
        generator = torch.Generator().manual_seed(seed)
        device = next(self.patcher.sites.module.parameters()).device
        free = torch.zeros(len(self.units), device=device, requires_grad=True)
        optimiser = torch.optim.Adam([free], lr=schedule.lr)
        report = self.patcher.report
        for step in range(schedule.steps):
            temperature, weight = schedule.at(step)
            order = torch.randperm(len(train), generator=generator)[: self.patcher.batch].tolist()
            rows = [train[one] for one in order]
            with torch.enable_grad():
                mask = torch.sigmoid(free / temperature)
                said = self.logits(mask, rows).float().cpu()
                wrong = functional.cross_entropy(said, self.patcher.runs.source_answer[rows])
                loss = wrong + weight * mask.mean().cpu()
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
            report.count(backwards=1)
            report.progress(step + 1, schedule.steps, loss=float(loss.detach()), units=float((free > 0).sum()))
            self.curve.append((step, float(wrong.detach()), int((free > 0).sum()), temperature, weight))
            if report.stopping:
                break
        return (free.detach() > 0).float()

    def _change(
        self, place: Place, units: Sequence[Unit], values: Tensor, donor: Tensor
    ) -> tuple[Place, capture.Change]:
        basis = self.patcher.basis
        weight = spread(units, values, donor.shape[1], basis.size(donor.shape[-1]))
        return place, lambda state: basis.moved(state, donor, weight)
