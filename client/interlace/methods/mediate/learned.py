"""Searches that learn: on some pairs, measured on the others, and done again in a model of no use."""

from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.mediate import families, tables
from interlace.methods.mediate.basis import Unit
from interlace.methods.mediate.das import Interchange, Search, untrained
from interlace.methods.mediate.masks import Masked, Schedule
from interlace.methods.mediate.patching import Patcher, Runs
from interlace.methods.mediate.selectivity import Selectivity
from interlace.methods.mediate.spec import MediateParams, MediateResult, Subspace
from interlace.methods.shared.sites import Sites
from interlace.protocol.errors import InvalidArtifact

_METHOD = "mediate@1"


def subspace(
    sites: Sites, runs: Runs, params: MediateParams, mediator: Subspace, selectivity: Selectivity, report: Report
) -> MediateResult:
    """DAS, or given directions. Raises InvalidRequest for a place that the model has not."""
    place = sites.place(mediator.site, mediator.layer)
    at = families.position(mediator.position, runs.tokens)
    train, test = _parted(len(runs), params.train, report.seed)
    own = Interchange(sites.module, place, at, runs, report)
    patcher = Patcher(sites, runs, params.batch, report)
    base, source = patcher.margins(runs.base), patcher.margins(runs.source)
    searched = (mediator.k, train, Search(params.steps, params.lr, params.batch), report.seed)
    given = mediator.basis is not None
    wide = families.width(sites, mediator.site, mediator.layer)
    basis = _given(report, mediator, wide) if given else own.learned(*searched)
    generator = torch.Generator().manual_seed(report.seed)
    random = torch.linalg.qr(torch.randn(basis.shape[1], basis.shape[0], generator=generator))[0].mT

    def iia(split: str, rows: list[int], directions: Tensor | None, one: Interchange = own) -> Metric:
        return tables.share("iia", one.hits(directions, rows, params.batch), len(rows), split)

    metrics = [tables.mean("total_effect", source - base), iia("train", train, basis), iia("test", test, basis)]
    metrics += [iia("test, the whole state", test, None), iia("test, random directions", test, random)]
    if params.random_weights and not given:
        other = untrained(sites, report.seed)
        control = Interchange(other.module, other.place(mediator.site, mediator.layer), at, runs, report)
        metrics.append(iia("test, random weights", test, control.learned(*searched), control))
    metrics.append(_chance(runs, test))
    unit = Unit(mediator.site, mediator.layer, at)
    shown, more, warnings = _selective(
        selectivity,
        unit,
        own.margins(basis, params.batch) - base,
        (source - base, test),
        lambda suite: Interchange(sites.module, place, at, suite.runs, report).margins(basis, params.batch),
        is_at_tokens=True,
    )
    config = {
        "method": _METHOD,
        "what": "basis [k, width]: orthonormal directions of the state at one token",
        "model_type": sites.model_type,
        "site": mediator.site,
        "layer": mediator.layer,
        "position": mediator.position,
    }
    return MediateResult(
        metrics=(*metrics, *shown),
        tables=(tables.pairs(params.pairs, base, source), *more),
        artifacts=() if given else (report.artifact("data", {"basis": basis}, config, name="subspace"),),
        warnings=tuple(warnings),
        rows=0,
    )


def mask(patcher: Patcher, units: list[Unit], params: MediateParams, selectivity: Selectivity) -> MediateResult:
    """DBM: which of ``units`` suffice together."""
    runs, report = patcher.runs, patcher.report
    train, test = _parted(len(runs), params.train, report.seed)
    schedule = Schedule(params.steps, params.lr, params.sparsity, params.temperature)
    own = Masked(patcher, units)
    base, source = patcher.margins(runs.base), patcher.margins(runs.source)
    chosen = own.learned(train, schedule, report.seed)
    count = int(chosen.sum())
    generator = torch.Generator().manual_seed(report.seed)
    random = torch.zeros(len(units))
    random[torch.randperm(len(units), generator=generator)[:count]] = 1

    def iia(split: str, rows: list[int], values: Tensor, one: Masked = own) -> Metric:
        return tables.share("iia", one.hits(values.to(chosen.device), rows), len(rows), split)

    metrics = [tables.mean("total_effect", source - base), iia("train", train, chosen), iia("test", test, chosen)]
    metrics += [iia("test, every unit", test, torch.ones(len(units))), iia("test, random units", test, random)]
    metrics.append(tables.share("units", count, len(units), ""))
    if params.random_weights:
        other = Patcher(untrained(patcher.sites, report.seed), runs, params.batch, report, basis=patcher.basis)
        control = Masked(other, units)
        metrics.append(iia("test, random weights", test, control.learned(train, schedule, report.seed), control))
    metrics.append(_chance(runs, test))
    moved = own.margins(chosen) - base
    metrics.append(tables.mean("effect", moved[test], "test"))
    shown, more, warnings = _selective(
        selectivity,
        None,
        moved,
        (source - base, test),
        lambda suite: Masked(suite, units).margins(chosen),
        is_at_tokens=any(unit.position is not None for unit in units),
        patcher=patcher,
    )
    if not count:
        warnings.append("The mask has no unit left: take a smaller `sparsity`, or more `steps`.")
    values = chosen.cpu()
    config: dict[str, Any] = {
        "method": _METHOD,
        "what": "mask [units], in the order of `units`: site, layer, position, unit",
        "model_type": patcher.sites.model_type,
        "units": [list(unit[:4]) for unit in units],
    }
    kept = [(*unit[:4],) for unit, value in zip(units, values.tolist(), strict=True) if value]
    return MediateResult(
        metrics=(*metrics, *shown),
        tables=(
            Table(name="mask", columns=("site", "layer", "position", "unit"), rows=tuple(kept)),
            Table(name="search", columns=("step", "loss", "units", "temperature", "weight"), rows=tuple(own.curve)),
            tables.pairs(params.pairs, base, source),
            *more,
        ),
        artifacts=(report.artifact("data", {"mask": values}, config, name="mask"),),
        warnings=tuple(warnings),
        rows=patcher.rows,
    )


def _selective(
    selectivity: Selectivity,
    unit: Unit | None,
    moved: Tensor,
    whole: tuple[Tensor, list[int]],
    effect: Any,
    *,
    is_at_tokens: bool,
    patcher: Patcher | None = None,
) -> tuple[list[Metric], tuple[Table, ...], list[str]]:
    """Of one intervention, whose share on the main pairs is of those that were held out."""
    if not selectivity.params.off_target:
        return [], (), []
    total, test = float(whole[0][whole[1]].mean()), whole[1]
    on = float(moved[test].mean()) / (total or float("nan"))
    metrics, table, warnings = selectivity.of(
        [unit],
        [on],
        total,
        lambda suite: effect(suite)[None],
        basis=None if patcher is None else patcher.basis,
        is_at_tokens=is_at_tokens,
    )
    return metrics, (table,), warnings


def _parted(n: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Pairs to learn from, and the others; one of each at least."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    cut = min(n - 1, max(1, round(share * n)))
    return sorted(order[:cut]), sorted(order[cut:])


def _chance(runs: Runs, test: list[int]) -> Metric:
    """The commonest answer's share."""
    return tables.share("chance", int(torch.bincount(runs.source_answer[test]).max()), len(test), "test")


def _given(report: Report, mediator: Subspace, wide: int) -> Tensor:
    assert mediator.basis is not None
    opened = report.open(mediator.basis, "data")
    basis = opened.tensors.get("basis")
    if basis is None or basis.dim() != 2 or basis.shape[1] != wide or not 0 < basis.shape[0] <= wide:
        raise InvalidArtifact(f"{opened.ref} must have the tensor `basis` [k, {wide}].")
    found: Tensor = torch.linalg.qr(basis.float().mT)[0].mT.contiguous()
    return found
