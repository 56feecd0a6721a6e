"""Selectivity: what mediators move of what they should carry, less what they move of what they should not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.mediate.basis import Basis, Unit
from interlace.methods.mediate.patching import Patcher, Runs
from interlace.methods.mediate.spec import MediateParams, Suite
from interlace.methods.shared.sites import Sites
from interlace.protocol.errors import InvalidRequest

_LEAST = 0.1  # of the main pairs' total effect: a suite of less has no scale of its own
_COLUMNS = ("site", "layer", "position", "unit", "suite", "on_target", "off_target", "selectivity", "n")


@dataclass(frozen=True)
class Selectivity:
    """Of one call's suites."""

    sites: Sites
    tokenizer: Any
    params: MediateParams
    report: Report

    def of(
        self,
        units: Sequence[Unit | None],
        shares: Sequence[float],
        total: float,
        effect: Callable[[Patcher], Tensor],
        *,
        basis: Basis | None = None,
        is_at_tokens: bool,
    ) -> tuple[list[Metric], Table, list[str]]:
        """For each of ``units`` (None: all at once), which moves such shares of the main pairs' ``total`` effect.

        ``effect`` gives m [units, n] of a suite's pairs under each. A suite's share is of its own total effect, or of
        the main one where its own is less than a tenth of that. The metrics are of the first unit.
        """
        metrics: list[Metric] = []
        warnings: list[str] = []
        rows: list[tuple[Any, ...]] = []
        for number, suite in enumerate(self.params.off_target):
            runs = self._runs(suite, number, is_at_tokens=is_at_tokens)
            patcher = Patcher(self.sites, runs, self.params.batch, self.report, basis=basis)
            base, source = patcher.margins(runs.base), patcher.margins(runs.source)
            scale = float((source - base).mean())
            if abs(scale) < _LEAST * abs(total):
                scale = total
                warnings.append(f"`off_target` {suite.name!r} has no effect of its own: shares are of the main one.")
            moved = ((effect(patcher) - base).mean(1) / (scale or float("nan"))).abs().tolist()
            for unit, on, off in zip(units, shares, moved, strict=True):
                place = (None, None, None, None) if unit is None else unit[:4]
                rows.append((*place, suite.name, on, off, on - off, len(base)))
            first = rows[-len(units)][7]
            metrics.append(Metric(name="selectivity", value=first, unit="fraction", n=len(base), split=suite.name))
        return metrics, Table(name="selectivity", columns=_COLUMNS, rows=tuple(rows)), warnings

    def _runs(self, suite: Suite, number: int, *, is_at_tokens: bool) -> Runs:
        where = f"params.off_target.{number}.pairs"
        runs = Runs.of(self.tokenizer, suite.pairs, where)
        wanted = Runs.of(self.tokenizer, self.params.pairs).tokens
        if is_at_tokens and runs.tokens != wanted:
            raise InvalidRequest(
                f"`{where}` has prompts of {runs.tokens} tokens and `params.pairs` of {wanted}: mediators of single "
                "tokens need as many."
            )
        return runs


def largest(units: Sequence[Unit], effects: Tensor, most: int) -> list[int]:
    """The numbers of the mediators of the largest mean effect, the largest first."""
    order = torch.argsort(effects.mean(1).abs(), descending=True, stable=True)
    return [int(one) for one in order[: min(most, len(units))]]
