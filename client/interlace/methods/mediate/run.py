"""Mediators, by whatever search; an approximation is always held against exact patching."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interlace.methods import _intervals
from interlace.methods._sites import Sites, evaluating
from interlace.methods.base import Metric, Report, Table
from interlace.methods.mediate.das import Interchange, Search, untrained
from interlace.methods.mediate.patching import Patcher, Runs, Unit, approximate, spearman
from interlace.methods.mediate.spec import Heads, MediateParams, MediateResult, Neurons, Parts, Subspace
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

_MOST_TOLD = 20_000  # rows of a table


def run(model: Any, params: MediateParams, report: Report) -> MediateResult:
    """See `MediateParams`. Raises InvalidRequest for what the model has not, and for more than the budget."""
    with evaluating(model), torch.no_grad():
        sites = Sites.of(model)
        runs = Runs.of(model.tokenizer, params.pairs)
        if isinstance(params.mediator, Subspace):
            return _subspace(sites, runs, params, params.mediator, report)
        return _units(sites, runs, params, report)


def _units(sites: Sites, runs: Runs, params: MediateParams, report: Report) -> MediateResult:
    units = units_of(sites, params.mediator, runs.base.shape[1])
    if params.search != "exhaustive" and any(unit.site == "ssm_out" for unit in units):
        raise InvalidRequest("A gradient of `ssm_out` cannot be had: take `mixer_act`, or `search: exhaustive`.")
    patcher = Patcher(sites, runs, params.batch, report, into_source=params.effect == "NDE")
    base, source = patcher.margins(runs.base), patcher.margins(runs.source)
    # What is subtracted from m under a patch, so that all effects are against the base.
    start = source - base if params.effect == "NDE" else torch.zeros_like(base)
    generator = torch.Generator().manual_seed(report.seed)
    checked = list(range(len(units)))
    if params.search != "exhaustive":
        checked = torch.randperm(len(units), generator=generator)[: params.check].sort().values.tolist()
    if len(checked) * len(runs) > params.budget:
        raise InvalidRequest(
            f"{len(checked)} mediators of {len(runs)} pairs are {len(checked) * len(runs):,} patched rows, and "
            f"`params.budget` is {params.budget:,}. Take `search: atp`, fewer layers, or a higher budget."
        )
    exact = patcher.exact([units[number] for number in checked]) - base
    metrics = [_mean("total_effect", source - base, "")]
    effects = exact
    if params.search != "exhaustive":
        steps = params.ig_steps if params.search == "ig" else 0
        effects = start + approximate(patcher, units, steps, report)
        metrics += _quality(effects[checked].mean(1), exact.mean(1))
    means = {number: float(row.mean()) for number, row in zip(checked, exact, strict=True)}
    return MediateResult(
        metrics=tuple(metrics),
        tables=(_effects(units, effects, means), _pairs(params, base, source)),
        rows=patcher.rows,
    )


def units_of(sites: Sites, mediator: Parts | Heads | Neurons | Subspace, tokens: int) -> list[Unit]:
    """All mediators of a family. Raises InvalidRequest."""
    assert not isinstance(mediator, Subspace)
    layers = range(sites.n_layers) if mediator.layers is None else mediator.layers
    if isinstance(mediator, Heads):
        if not sites.n_heads:
            raise InvalidRequest(f"A {sites.model_type} has no heads; take `parts` or `neurons`.")
        return [Unit(f"head:{head}", layer, None) for layer in layers for head in range(sites.n_heads)]
    if isinstance(mediator, Neurons):
        at = _position(mediator.position, tokens)
        widths = {layer: _width(sites, mediator.site, layer) for layer in layers}
        return [Unit(mediator.site, layer, at, index) for layer in layers for index in range(widths[layer])]
    positions: list[int | None] = [None]
    if mediator.positions == "each":
        positions = list(range(tokens))
    elif mediator.positions != "all":
        positions = [_position(one, tokens) for one in mediator.positions]
    return [Unit(site, layer, at) for site in mediator.sites for layer in layers for at in positions]


def _width(sites: Sites, site: str, layer: int) -> int:
    """Numbers of a state."""
    place = sites.place(site, layer)
    if place.side == "output":
        return int(sites.module.get_input_embeddings().weight.shape[1])
    shape: Any = place.module.weight.shape  # of a linear module, or of transformers' Conv1D, whose weight is turned
    return int(shape[0] if type(place.module).__name__ == "Conv1D" else shape[1])


def _position(wanted: int, tokens: int) -> int:
    at = wanted + tokens if wanted < 0 else wanted
    if not 0 <= at < tokens:
        raise InvalidRequest(f"The position {wanted} is not in prompts of {tokens} tokens.")
    return at


def _subspace(sites: Sites, runs: Runs, params: MediateParams, mediator: Subspace, report: Report) -> MediateResult:
    """DAS, or given directions: trained on some pairs, measured on the others, and all of it in a model of no use."""
    place = sites.place(mediator.site, mediator.layer)
    at = _position(mediator.position, runs.base.shape[1])
    order = torch.randperm(len(runs), generator=torch.Generator().manual_seed(report.seed)).tolist()
    cut = min(len(runs) - 1, max(1, round(params.train * len(runs))))
    train, test = sorted(order[:cut]), sorted(order[cut:])
    own = Interchange(sites.module, place, at, runs, report)
    patcher = Patcher(sites, runs, params.batch, report, into_source=False)
    base, source = patcher.margins(runs.base), patcher.margins(runs.source)
    searched = (mediator.k, train, Search(params.steps, params.lr, params.batch), report.seed)
    given = mediator.basis is not None
    basis = _given(report, mediator, _width(sites, mediator.site, mediator.layer)) if given else own.learned(*searched)
    metrics = [_mean("total_effect", source - base, "")]
    metrics += [_iia(own, basis, rows, params.batch, split) for rows, split in ((train, "train"), (test, "test"))]
    metrics.append(_iia(own, None, test, params.batch, "test, the whole state"))
    generator = torch.Generator().manual_seed(report.seed)
    random = torch.linalg.qr(torch.randn(basis.shape[1], basis.shape[0], generator=generator))[0].mT
    metrics.append(_iia(own, random, test, params.batch, "test, random directions"))
    if params.random_weights and not given:
        other = untrained(sites, report.seed)
        control = Interchange(other.module, other.place(mediator.site, mediator.layer), at, runs, report)
        metrics.append(_iia(control, control.learned(*searched), test, params.batch, "test, random weights"))
    common = int(torch.bincount(runs.source_answer[test]).max())
    metrics.append(_share("chance", common, len(test), "test"))
    config = {
        "method": "mediate@1",
        "what": "basis [k, width]: orthonormal directions of the state at one token",
        "model_type": sites.model_type,
        "site": mediator.site,
        "layer": mediator.layer,
        "position": mediator.position,
    }
    return MediateResult(
        metrics=tuple(metrics),
        tables=(_pairs(params, base, source),),
        artifacts=() if given else (report.artifact("data", {"basis": basis}, config, name="subspace"),),
        rows=0,
    )


def _given(report: Report, mediator: Subspace, width: int) -> Tensor:
    assert mediator.basis is not None
    opened = report.open(mediator.basis, "data")
    basis = opened.tensors.get("basis")
    if basis is None or basis.dim() != 2 or basis.shape[1] != width or not 0 < basis.shape[0] <= width:
        raise InvalidArtifact(f"{opened.ref} must have the tensor `basis` [k, {width}].")
    found: Tensor = torch.linalg.qr(basis.float().mT)[0].mT.contiguous()
    return found


def _iia(one: Interchange, basis: Tensor | None, rows: Sequence[int], batch: int, split: str) -> Metric:
    return _share("iia", one.hits(basis, rows, batch), len(rows), split)


def _share(name: str, hits: int, n: int, split: str) -> Metric:
    value, interval = _intervals.share(hits, n)
    return Metric(name=name, value=value, unit="fraction", n=n, ci95=interval, split=split)


def _mean(name: str, values: Tensor, split: str) -> Metric:
    value, interval = _intervals.mean(values.tolist())
    return Metric(name=name, value=value, unit="logits", n=len(values), ci95=interval, split=split)


def _quality(estimates: Tensor, exact: Tensor) -> list[Metric]:
    """How an approximation ranks mediators, and its slope on what is exact (1 where it is right)."""
    square = float(exact @ exact)
    slope = float(estimates @ exact) / square if square else float("nan")
    n = len(exact)
    return [
        Metric(name="ranking_quality", value=spearman(estimates, exact), n=n, split="checked"),
        Metric(name="slope", value=slope, n=n, split="checked"),
    ]


def _effects(units: Sequence[Unit], effects: Tensor, exact: dict[int, float]) -> Table:
    rows: list[tuple[Any, ...]] = []
    for number, (unit, row) in enumerate(zip(units, effects.tolist(), strict=True)):
        value, interval = _intervals.mean(row)
        low, high = interval or (None, None)
        rows.append((*unit[:4], value, low, high, exact.get(number), len(row)))
    rows.sort(key=lambda row: -abs(row[4]))
    columns = ("site", "layer", "position", "unit", "estimate", "low", "high", "exact", "n")
    return Table(name="effects", columns=columns, rows=tuple(rows[:_MOST_TOLD]))


def _pairs(params: MediateParams, base: Tensor, source: Tensor) -> Table:
    rows = [
        (pair.base, pair.source, *margins)
        for pair, margins in zip(params.pairs, zip(base.tolist(), source.tolist(), strict=True), strict=True)
    ]
    return Table(name="pairs", columns=("base", "source", "m_base", "m_source"), rows=tuple(rows))
