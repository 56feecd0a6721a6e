"""`images.filter` from beginning to end."""

from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.filtering.criteria import Words, scorer
from interlace.methods.filtering.spec import Concept, FilterParams, FilterResult
from interlace.methods.shared.images import Images, grid, keep, opened
from interlace.methods.shared.intervals import share
from interlace.methods.shared.pictures import Picture

_NONE = "(no caption)"
_COLUMNS = 6
_SHOWN = 400  # characters of a caption
_SMALL = 64  # pixels of a drawn image's side, about


def run(model: Any, params: FilterParams, report: Report) -> FilterResult:
    """Which images stay, and why others do not. Raises InvalidRequest, InvalidArtifact."""
    images = opened(report, params.images)
    spoken = [_spoken(params, caption) for caption in images.captions]
    left = [number for number, found in enumerate(spoken) if not found]
    concepts = params.image.wanted if params.image is not None else ()
    scores = torch.full((len(images), len(concepts)), float("nan"))
    if params.image is not None and left:
        with scorer(model, params.image, params.batch, report) as score:
            scores[left] = score.scores(images.some(left), report)
    levels = torch.tensor([one.threshold for one in concepts])
    seen = scores >= levels  # of those that were not scored: no
    kept = [number for number in left if not seen[number].any()]
    made = (keep(report, images.some(kept), name="kept"),) if kept else ()
    gone = sorted(set(range(len(images))) - set(kept))
    closest = _closest(kept, scores, levels)
    return FilterResult(
        kept=len(kept),
        removed=len(gone),
        metrics=_metrics(len(images), len(left), len(kept), params),
        tables=(
            _removed(images, gone, spoken, scores, concepts),
            _reasons(spoken, seen, concepts),
            Table(
                name="closest",
                columns=("image", "caption", "reason", "score", "threshold"),
                rows=tuple(
                    (n, images.captions[n][:_SHOWN], concepts[c].name, float(scores[n, c]), concepts[c].threshold)
                    for n, c in closest[: params.shown]
                ),
            ),
        ),
        artifacts=made,
        pictures=_pictures(params, images, gone, spoken, scores, concepts, closest),
        warnings=() if kept else ("Nothing is left, so no artifact was made.",),
    )


def _spoken(params: FilterParams, caption: str) -> list[str]:
    """The reasons that a caption gives."""
    if params.text is None:
        return []
    if not caption.strip():
        return [_NONE] if params.without_caption == "remove" else []
    return Words(params.text).found(caption)


def _metrics(n: int, left: int, kept: int, params: FilterParams) -> tuple[Metric, ...]:
    shares = []
    if params.text is not None:
        shares.append(("removed by text", n - left, n))
    if params.image is not None:
        shares.append(("removed by image", left - kept, left))
    shares.append(("kept", kept, n))
    return tuple(
        Metric(name=name, value=value, unit="fraction", n=of, ci95=interval)
        for name, hits, of in shares
        if of
        for value, interval in [share(hits, of)]
    )


def _why(number: int, spoken: list[list[str]], scores: Tensor, concepts: tuple[Concept, ...]) -> tuple[Any, ...]:
    """Stage, reason, score and threshold of a removed image: the first phrase, or the concept that is most over."""
    if spoken[number]:
        return "text", spoken[number][0], None, None
    over = [float(scores[number, c]) - one.threshold for c, one in enumerate(concepts)]
    worst = max(range(len(over)), key=over.__getitem__)
    return "image", concepts[worst].name, float(scores[number, worst]), concepts[worst].threshold


def _removed(
    images: Images, gone: list[int], spoken: list[list[str]], scores: Tensor, concepts: tuple[Concept, ...]
) -> Table:
    rows = [
        (number, images.sha256[number], images.captions[number][:_SHOWN], *_why(number, spoken, scores, concepts))
        for number in gone
    ]
    columns = ("image", "sha256", "caption", "stage", "reason", "score", "threshold")
    return Table(name="removed", columns=columns, rows=tuple(rows))


def _reasons(spoken: list[list[str]], seen: Tensor, concepts: tuple[Concept, ...]) -> Table:
    met: dict[tuple[str, str], list[int]] = {}
    for number, found in enumerate(spoken):
        for phrase in found:
            met.setdefault(("text", phrase), []).append(len(found))
        for c in torch.nonzero(seen[number]).flatten().tolist():
            met.setdefault(("image", concepts[c].name), []).append(int(seen[number].sum()))
    rows = [(*reason, len(counts), counts.count(1)) for reason, counts in met.items()]
    rows.sort(key=lambda row: (row[0] != "text", -row[2], row[1]))
    return Table(name="reasons", columns=("stage", "reason", "images", "alone"), rows=tuple(rows))


def _closest(kept: list[int], scores: Tensor, levels: Tensor) -> list[tuple[int, int]]:
    """Kept images and the concept that each came nearest to, the nearest first."""
    if not len(levels) or not kept:
        return []
    under = (scores - levels)[kept]
    best = under.max(1)
    order = best.values.argsort(descending=True, stable=True).tolist()
    return [(kept[n], int(best.indices[n])) for n in order]


def _pictures(
    params: FilterParams,
    images: Images,
    gone: list[int],
    spoken: list[list[str]],
    scores: Tensor,
    concepts: tuple[Concept, ...],
    closest: list[tuple[int, int]],
) -> tuple[Picture, ...]:
    found = []
    scale = max(1, _SMALL // images.pixels.shape[1])
    for title, which, labels in (
        ("removed", gone, [_why(n, spoken, scores, concepts)[1] for n in gone[: params.shown]]),
        ("kept, closest to a threshold", [n for n, _ in closest], [concepts[c].name for _, c in closest]),
    ):
        some = which[: params.shown]
        if some:
            small = images.some(some) if images.pixels.shape[1] <= 2 * _SMALL else images.some(some).resized(_SMALL)
            labels = [str(one)[:10] for one in labels[: len(some)]]
            found.append(Picture.of(title, grid(small.pixels, min(_COLUMNS, len(some)), labels=labels, scale=scale)))
    return tuple(found)
