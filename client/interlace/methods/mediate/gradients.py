"""What patches would do, by gradients: attribution patching and integrated gradients; and how well they rank."""

from collections.abc import Sequence

import torch
from torch import Tensor

from interlace.methods.base import Metric
from interlace.methods.mediate.basis import Unit, by_place
from interlace.methods.mediate.patching import Patcher
from interlace.methods.shared import capture
from interlace.methods.shared.ranking import spearman
from interlace.methods.shared.sites import Place


def approximate(patcher: Patcher, units: Sequence[Unit], steps: int) -> Tensor:
    """What patching each unit would change m by, by one gradient (``steps`` 0) or their mean on the way: [units, n]."""
    places = by_place(units)
    found = torch.empty(len(units), len(patcher.runs), dtype=torch.float64)
    groups = [list(places)] if not steps else [[one] for one in places]
    points = [(step + 0.5) / steps for step in range(steps)] or [0.0]
    done = 0
    for rows in patcher.batches():
        for group in groups:
            here = [patcher.sites.place(site, layer) for site, layer in group]
            donors, own = patcher.states(here, rows, into=False), patcher.states(here, rows, into=True)
            runs = [_slopes(patcher, here, rows, donors, own, at) for at in points]
            for number, key in enumerate(group):
                slope = torch.stack([run[number] for run in runs]).mean(0)
                ends = own[number].double().cpu(), donors[number].double().cpu()
                parts = patcher.basis.parts(slope, *ends)
                found[torch.tensor(places[key])[:, None], torch.tensor(rows)] = _sums(
                    parts, [units[one] for one in places[key]]
                )
            done += 1
            patcher.report.progress(done, len(groups) * len(patcher.batches()))
    return found


def _slopes(
    patcher: Patcher, places: Sequence[Place], rows: Sequence[int], donors: list[Tensor], own: list[Tensor], at: float
) -> list[Tensor]:
    """dm/dz at each place, [rows, tokens, width], double, with z ``at`` of the way to the other run.

    Several places are read in the run as it is only: ``at`` is 0 for them.
    """
    leaves: list[Tensor] = [torch.empty(0)] * len(places)

    def opened(number: int) -> capture.Change:
        def change(state: Tensor) -> Tensor:
            moved = state + at * (donors[number] - own[number]) if at else state + 0
            if not moved.requires_grad:
                moved.requires_grad_(True)
            leaves[number] = moved
            return moved

        return change

    with torch.enable_grad():
        changes = [(place, opened(number)) for number, place in enumerate(places)]
        total = patcher.runs.margin(patcher.logits(patcher.into[list(rows)], changes), rows).sum()
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    patcher.report.count(backwards=1)
    return [
        (torch.zeros_like(state) if gradient is None else gradient).double().cpu()
        for gradient, state in zip(gradients, own, strict=True)
    ]


def _sums(parts: Tensor, units: Sequence[Unit]) -> Tensor:
    """[units, rows] of [rows, tokens, k]; the units are of one family."""
    some = parts.sum(1, keepdim=True) if units[0].position is None else parts
    some = some.sum(2, keepdim=True) if units[0].number is None else some
    positions = torch.tensor([int(unit.position or 0) for unit in units])
    numbers = torch.tensor([0 if unit.number is None else unit.number for unit in units])
    return some[:, positions, numbers].mT


def quality(estimates: Tensor, exact: Tensor) -> list[Metric]:
    """How an approximation ranks mediators, and its slope on what is exact (1 where it is right)."""
    square = float(exact @ exact)
    slope = float(estimates @ exact) / square if square else float("nan")
    n = len(exact)
    return [
        Metric(name="ranking_quality", value=spearman(estimates, exact), n=n, split="checked"),
        Metric(name="slope", value=slope, n=n, split="checked"),
    ]
