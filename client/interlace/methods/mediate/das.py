"""Distributed alignment search: directions whose values, taken from another run, bring the other run's answer."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from interlace.methods.base import Report
from interlace.methods.mediate.patching import Runs
from interlace.methods.shared import capture
from interlace.methods.shared.sites import Place, Sites


@dataclass(frozen=True)
class Search:
    """How directions are looked for."""

    steps: int
    lr: float
    batch: int


@dataclass(frozen=True)
class Interchange:
    """One place and token of a model, and what happens when directions there are as in the source."""

    module: nn.Module
    place: Place
    position: int
    runs: Runs
    report: Report

    def logits(self, basis: Tensor | None, rows: Sequence[int]) -> Tensor:
        """[rows, vocabulary], with the directions of ``basis`` [k, width] as in the source; all of them for None."""
        picked = list(rows)
        device = next(self.module.parameters()).device
        with torch.no_grad(), capture.captured({0: self.place}) as states:
            self._forward(self.runs.source[picked].to(device))
        source = states[0][:, self.position].detach()

        def change(state: Tensor) -> Tensor:
            gap = source - state[:, self.position]
            moved = gap if basis is None else (gap @ basis.mT.to(gap)) @ basis.to(gap)
            added = torch.zeros_like(state)
            added[:, self.position] = moved
            return state + added

        with capture.altered([(self.place, change)]):
            return self._forward(self.runs.base[picked].to(device))

    def hits(self, basis: Tensor | None, rows: Sequence[int], batch: int) -> int:
        """Of how many pairs the model's first choice is the source's answer."""
        found = 0
        for start in range(0, len(rows), batch):
            some = rows[start : start + batch]
            with torch.no_grad():
                said = self.logits(basis, some).argmax(-1).cpu()
            found += int((said == self.runs.source_answer[list(some)]).sum())
        return found

    def margins(self, basis: Tensor | None, batch: int) -> Tensor:
        """m of all pairs, [n], double, with these directions as in the source."""
        found = []
        for start in range(0, len(self.runs), batch):
            rows = list(range(start, min(start + batch, len(self.runs))))
            with torch.no_grad():
                found.append(self.runs.margin(self.logits(basis, rows), rows).double().cpu())
        return torch.cat(found)

    def learned(self, k: int, train: Sequence[int], search: Search, seed: int) -> Tensor:
        """k orthonormal rows [k, width] with which the source's answer is likeliest, by Adam."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad(), capture.captured({0: self.place}) as states:
            self._forward(self.runs.base[:1].to(next(self.module.parameters()).device))
        width = states[0].shape[-1]
        free = torch.randn(width, k, generator=generator).requires_grad_(True)
        optimiser = torch.optim.Adam([free], lr=search.lr)
        for step in range(search.steps):
            order = torch.randperm(len(train), generator=generator)[: search.batch].tolist()
            rows = [train[one] for one in order]
            with torch.enable_grad():
                basis = torch.linalg.qr(free)[0].mT
                loss = functional.cross_entropy(self.logits(basis, rows).float().cpu(), self.runs.source_answer[rows])
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
            self.report.count(backwards=1)
            self.report.progress(step + 1, search.steps, loss=float(loss.detach()))
            if self.report.stopping:
                break
        return torch.linalg.qr(free.detach())[0].mT.contiguous()

    def _forward(self, ids: Tensor) -> Tensor:
        self.report.count(forwards=1, tokens=ids.numel())
        return capture.last_logits(self.module, ids)


def untrained(sites: Sites, seed: int) -> Sites:
    """The places of a copy with normal weights, each tensor's of the mean and spread that it had: it knows nothing."""
    module: Any = copy.deepcopy(sites.module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            wide = weight.float()
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            weight.copy_(wide.mean() + wide.std(unbiased=False) * noise)
    return Sites.of(module)
