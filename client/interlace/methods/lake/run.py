"""`lake.sketch` and `lake.recover`: what stands for weights, and which of some came of which."""

from typing import Any

import torch

from interlace.methods.base import Metric, Report, Table
from interlace.methods.lake.measure import geometry
from interlace.methods.lake.spec import HeritageEdge, RecoverParams, RecoverResult, SketchParams, SketchResult
from interlace.methods.lake.tree import Geometry, Heritage
from interlace.methods.lake.tree import recover as recovered
from interlace.methods.shared import weights as _weights
from interlace.methods.shared.sites import unwrapped

_MODEL = "model"


def sketch(model: Any, params: SketchParams, report: Report) -> SketchResult:
    """One artifact of the kind `sketch`. Raises InvalidRequest for a model without matrices."""
    with torch.no_grad():
        names = _weights.names_of(model)
        config = getattr(unwrapped(model), "config", None)
        said = {"model_type": str(getattr(config, "model_type", "")), "title": params.title, "method": "lake.sketch@1"}
        made = _weights.packed(_weights.hosted(model), names, **said)
    report.count(forwards=1)  # of every weight, once
    ref = report.artifact("sketch", *made, name=params.title or "sketch of weights")
    return SketchResult(matrices=len(names), artifacts=(ref,))


def recover(model: Any, params: RecoverParams, report: Report) -> RecoverResult:
    """See `RecoverParams`. Raises InvalidArtifact for what is not of the model's architecture."""
    refs = list(params.models)
    opened = [report.open(one) for one in refs]
    times = list(params.times or [None] * len(refs))
    with torch.no_grad():
        models = [_weights.of_artifact(model, one) for one in opened]
        if params.include_model:
            models.append(_weights.hosted(model))
            times.append(None)
            refs.append(_MODEL)
        names = _weights.names_of(model)
        report.progress(0, len(names))
        found = geometry(models, names, report.seed)
    report.count(forwards=1)  # of every weight, once
    order = found.order(refs)
    root = order.index(len(models) - 1) if params.include_model else None
    pairs, refs = _pairs(found, refs), [refs[one] for one in order]
    siblings = params.fans == "siblings"
    heritage = recovered(
        found.taken(order),
        [times[one] for one in order],
        root,
        distance=params.distance,
        kurtosis=params.kurtosis,
        z_related=params.z_related,
        siblings=siblings,
    )
    fanned = {frozenset((one, other)) for group in heritage.fans for one in group for other in group}
    sure = [edge for edge in heritage.edges if frozenset((edge.parent, edge.child)) not in fanned]
    related = sum(len(family) for family in heritage.families if len(family) > 1)
    return RecoverResult(
        metrics=(
            Metric(name="related", value=related, n=len(models)),
            Metric(name="edges", value=len(sure), n=len(heritage.edges)),
        ),
        tables=(_edges(heritage, refs), pairs),
        warnings=tuple(_warnings(heritage, refs, siblings)),
        heritage=tuple(
            HeritageEdge(parent=refs[one.parent], child=refs[one.child], margin=round(one.margin, 6)) for one in sure
        ),
        families=tuple(tuple(refs[one] for one in family) for family in heritage.families),
    )


def _edges(heritage: Heritage, refs: list[str]) -> Table:
    return Table(
        name="edges",
        columns=("parent", "child", "relative_distance", "runner_up", "margin", "directed_by"),
        rows=tuple(
            (
                refs[one.parent],
                refs[one.child],
                one.distance,
                None if one.runner_up is None else refs[one.runner_up],
                one.margin,
                one.directed_by,
            )
            for one in heritage.edges
        ),
    )


def _pairs(found: Geometry, refs: list[str]) -> Table:
    return Table(
        name="pairs",
        columns=("one", "other", "relative_distance", "rank", "spectral", "z"),
        rows=tuple(
            (
                refs[i],
                refs[j],
                float(found.relative[i, j]),
                int(found.rank[i, j]),
                float(found.spectral[i, j]),
                float(found.z[i, j]),
            )
            for i in range(len(refs))
            for j in range(i + 1, len(refs))
        ),
    )


def _warnings(heritage: Heritage, refs: list[str], siblings: bool) -> list[str]:
    said = [f"duplicate: {refs[one]} and {refs[other]} are one and the same." for one, other in heritage.duplicates]
    for one, a, b, along in heritage.merges:
        said.append(f"merge_suspected: {refs[one]} is {1 - along:.2f} of {refs[a]} and {along:.2f} of {refs[b]}.")
    for group in heritage.fans:
        what = "they are taken for siblings." if siblings else "which of them came of which cannot be told."
        said.append(f"fan_suspected: {', '.join(refs[one] for one in group)} differ as runs of one sweep do; {what}")
    for one, other in heritage.permuted:
        said.append(
            f"permuted_copy: {refs[one]} and {refs[other]} have the same singular values, and no weights in common: "
            "one may be the other with its neurons in another order."
        )
    return said
