"""Mediators, by whatever search; an approximation is always held against exact patching."""

from typing import Any

import torch

from interlace.methods.base import Report, Table
from interlace.methods.mediate import families, learned, tables
from interlace.methods.mediate.basis import Basis, Unit
from interlace.methods.mediate.gradients import approximate, quality
from interlace.methods.mediate.patching import Patcher, Runs
from interlace.methods.mediate.selectivity import Selectivity, largest
from interlace.methods.mediate.spec import Features, MediateParams, MediateResult, Subspace
from interlace.methods.shared.sites import Sites, evaluating
from interlace.protocol.errors import InvalidRequest


def run(model: Any, params: MediateParams, report: Report) -> MediateResult:
    """See `MediateParams`. Raises InvalidRequest for what the model has not, and for more than the budget."""
    with evaluating(model), torch.no_grad():
        sites = Sites.of(model)
        runs = Runs.of(model.tokenizer, params.pairs)
        selectivity = Selectivity(sites, model.tokenizer, params, report)
        if isinstance(params.mediator, Subspace):
            return learned.subspace(sites, runs, params, params.mediator, selectivity, report)
        patcher, units = _opened(sites, runs, params, report)
        if params.search == "dbm":
            return learned.mask(patcher, units, params, selectivity)
        return _units(patcher, units, params, selectivity)


def _opened(sites: Sites, runs: Runs, params: MediateParams, report: Report) -> tuple[Patcher, list[Unit]]:
    """All mediators, and what patches them."""
    mediator, is_denied = params.mediator, params.effect == "NDE"
    assert not isinstance(mediator, Subspace)
    basis: Basis | None = None
    if isinstance(mediator, Features):
        units, basis = families.features(sites, mediator, runs, params.batch, report, into_source=is_denied)
    else:
        units = families.units_of(sites, mediator, runs.tokens)
    if params.search != "exhaustive" and any(unit.site == "ssm_out" for unit in units):
        raise InvalidRequest("A gradient of `ssm_out` cannot be had: take `mixer_act`, or `search: exhaustive`.")
    return Patcher(sites, runs, params.batch, report, basis=basis, into_source=is_denied), units


def _units(patcher: Patcher, units: list[Unit], params: MediateParams, selectivity: Selectivity) -> MediateResult:
    """Each mediator by itself."""
    runs = patcher.runs
    base, source = patcher.margins(runs.base), patcher.margins(runs.source)
    # What is subtracted from m under a patch, so that all effects are against the base.
    start = source - base if params.effect == "NDE" else torch.zeros_like(base)
    checked = list(range(len(units)))
    if params.search != "exhaustive":
        generator = torch.Generator().manual_seed(patcher.report.seed)
        checked = torch.randperm(len(units), generator=generator)[: params.check].sort().values.tolist()
    _afforded(len(checked), len(units), params)
    exact = patcher.exact([units[number] for number in checked]) - base
    metrics = [tables.mean("total_effect", source - base)]
    effects = exact
    if params.search != "exhaustive":
        effects = start + approximate(patcher, units, params.ig_steps if params.search == "ig" else 0)
        metrics += quality(effects[checked].mean(1), exact.mean(1))
    means = {number: float(row.mean()) for number, row in zip(checked, exact, strict=True)}
    more: tuple[Table, ...] = ()
    warnings: list[str] = []
    if params.off_target:
        best = largest(units, effects, params.selected)
        some = [units[number] for number in best]
        total = float((source - base).mean())
        moved = effects[best] if params.search == "exhaustive" else patcher.exact(some) - base
        shown, table, warnings = selectivity.of(
            some,
            (moved.mean(1) / (total or float("nan"))).tolist(),
            total,
            lambda suite: suite.exact(some),
            basis=patcher.basis,
            is_at_tokens=any(unit.position is not None for unit in some),
        )
        metrics += shown
        more = (table,)
    return MediateResult(
        metrics=tuple(metrics),
        tables=(tables.effects(units, effects, means), tables.pairs(params.pairs, base, source), *more),
        warnings=tuple(warnings),
        rows=patcher.rows,
    )


def _afforded(checked: int, units: int, params: MediateParams) -> None:
    """Raises InvalidRequest where exact patching takes more than the budget."""
    n = len(params.pairs)
    selected = 0
    if params.off_target:
        own = n if params.search != "exhaustive" else 0
        selected = min(params.selected, units) * (own + sum(len(one.pairs) for one in params.off_target))
    rows = checked * n + selected
    if rows > params.budget:
        raise InvalidRequest(
            f"{checked} mediators of {n} pairs{' and off-target pairs' if selected else ''} are {rows:,} patched rows, "
            f"and `params.budget` is {params.budget:,}. Take `search: atp`, fewer layers, or a higher budget."
        )
