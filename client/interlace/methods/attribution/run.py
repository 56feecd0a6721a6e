"""`attribute.images` from beginning to end: Fisher, losses, and for each query a step away and the losses again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interlace.methods.attribution.scores import auc, average_precision, averaged, overlap, top
from interlace.methods.attribution.spec import CAVEAT, AttributeParams, AttributeResult
from interlace.methods.attribution.unlearn import Pictures, Weights, moved
from interlace.methods.base import Metric, Report, Table
from interlace.methods.shared.denoising import diffusion
from interlace.methods.shared.denoising.adapted import adapted
from interlace.methods.shared.images import Images, grid, opened
from interlace.methods.shared.pictures import Picture
from interlace.protocol.errors import InvalidRequest

_ADAPTER = "explained"
_FAR = 0.1  # of the weights' norm
_SHOWN = 4  # queries of the picture
_SMALL = 64  # pixels of a drawn image's side, about


def run(model: Any, params: AttributeParams, report: Report) -> AttributeResult:
    """Score candidates on ``model``, which is left as it was, to the bit. Raises InvalidRequest, InvalidArtifact."""
    queries, candidates = opened(report, params.queries), opened(report, params.candidates)
    controls = opened(report, params.controls) if params.controls is not None else None
    if wrong := [one for one in (*params.known, *params.members) if one >= len(candidates)]:
        raise InvalidRequest(f"known or members names candidate {wrong[0]}; there are {len(candidates)}, from 0 on.")
    with diffusion.opened(model, report) as pipeline, adapted(pipeline, report, params.adapter, _ADAPTER) as layers:
        if layers is not None:
            layers.use({_ADAPTER: 1.0})
        side = params.resolution or int(pipeline.unet.config.sample_size) * pipeline.pixels
        queries, candidates = queries.resized(side), candidates.resized(side)
        asked = [queries, *([controls.resized(side)] if controls is not None else [])]
        with moved(pipeline, params) as weights:
            scores, moves, loss = _scored(pipeline, weights, asked, candidates, params, report)
    pixels = torch.cat([_near(one, candidates) for one in asked])
    return _result(queries, candidates, scores, moves, loss, pixels, params, report)


def _scored(
    pipeline: diffusion.Pipeline,
    weights: Weights,
    asked: Sequence[Images],
    candidates: Images,
    params: AttributeParams,
    report: Report,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [queries and controls done, candidates], how far the weights went for each, and the losses before."""
    held = _encoded(pipeline, candidates, params.batch)
    of = sum(map(len, asked)) + 2
    before = weights.losses(held)
    report.progress(1, of)
    fisher = weights.fisher(held)
    report.progress(2, of)
    rows: list[Tensor] = []
    moves: list[Tensor] = []
    if (checkpoint := report.resumed()) is not None:
        rows, moves = list(checkpoint.tensors["rows"]), list(checkpoint.tensors["moves"])
    done = 0
    for images in asked:
        queries = _encoded(pipeline, images, params.batch)
        for which in range(len(queries)):
            done += 1
            if done <= len(rows):
                continue
            dice = torch.Generator().manual_seed(report.seed * 104_729 + which)
            for _ in range(params.steps):
                weights.step(queries, which, fisher, params.n or len(candidates), dice)
            rows.append(weights.losses(held) - before)
            moves.append(torch.tensor(weights.change()))
            weights.restore()
            report.progress(done + 2, of, weights_moved=float(moves[-1]))
            report.checkpoint(done, {"rows": torch.stack(rows), "moves": torch.stack(moves)}, {})
            if report.stopping:
                return torch.stack(rows), torch.stack(moves), before
    return torch.stack(rows), torch.stack(moves), before


def _encoded(pipeline: diffusion.Pipeline, images: Images, batch: int) -> Pictures:
    parts = [pipeline.encode_images(some).mean for some in images.pixels.split(batch)]
    return Pictures(torch.cat(parts), pipeline.encode_prompts(images.captions))


def _near(queries: Images, candidates: Images) -> Tensor:
    """Minus the root mean square of what differs in their pixels, in units of the range: [queries, candidates]."""
    flat, other = queries.pixels.flatten(1).float(), candidates.pixels.flatten(1).float()
    return -torch.cdist(flat, other) / 255 / flat.shape[1] ** 0.5


def _result(
    queries: Images,
    candidates: Images,
    scores: Tensor,
    moves: Tensor,
    loss: Tensor,
    pixels: Tensor,
    params: AttributeParams,
    report: Report,
) -> AttributeResult:
    n = min(len(queries), len(scores))
    own, near = scores[:n], pixels[:n]
    kept = report.artifact("data", {"scores": scores, "loss": loss, "pixels": pixels}, {"queries": n}, name="scores")
    tops = [top(row, params.top) for row in own]
    easiest = top(-loss, params.top)
    metrics = [averaged("loss_overlap", [len(set(one) & set(easiest)) / len(one) for one in tops])]
    metrics.append(averaged("weights_moved", moves.tolist(), unit="of their norm"))
    if (shared := overlap(tops)) is not None:
        metrics.append(Metric(name="query_overlap", value=shared, unit="fraction", n=n))
    tables = [_ranked(own, loss, near, candidates, params)]
    if params.known:
        for split, some in (("queries", own), ("controls", scores[n:])):
            hits = [len(set(top(row, params.top)) & set(params.known)) / params.top for row in some]
            if hits:
                metrics.append(averaged("known_in_top", hits, split))
        metrics += _compared(own, scores[n:], loss, near, params)
    cancelled = ("Cancelled: not all queries and controls were scored.",) if report.stopping else ()
    return AttributeResult(
        metrics=tuple(metrics),
        tables=tuple(tables),
        artifacts=(kept,),
        pictures=(_picture(queries, candidates, tops, easiest),),
        warnings=(CAVEAT, *_over(moves, params), *cancelled),
    )


def _over(moves: Tensor, params: AttributeParams) -> tuple[str, ...]:
    """A warning where the step is no small one, for which alone the formula holds."""
    if float(moves.max()) <= _FAR:
        return ()
    return (
        f"To forget a query the weights went up to {float(moves.max()):.2g} of their own norm (over {_FAR}): the model "
        f"may be broken, and scores may say nothing. Take an alpha well under {params.alpha:g}, or a larger n.",
    )


def _ranked(scores: Tensor, loss: Tensor, near: Tensor, candidates: Images, params: AttributeParams) -> Table:
    by_loss = _places(-loss)
    rows = []
    for query, row in enumerate(scores):
        by_pixels = _places(near[query])
        z = (row - row.mean()) / row.std().clamp_min(1e-30)
        for rank, one in enumerate(top(row, params.top), 1):
            line = (query, rank, one, float(row[one]), float(z[one]), by_loss[one], by_pixels[one])
            rows.append((*line, candidates.sha256[one]))
    columns = ("query", "rank", "candidate", "score", "z", "loss_rank", "pixel_rank", "sha256")
    return Table(name="ranked", columns=columns, rows=tuple(rows))


def _places(scores: Tensor) -> list[int]:
    """Each one's rank, from 1 on."""
    ranks = torch.empty(len(scores), dtype=torch.long)
    ranks[scores.argsort(descending=True, stable=True)] = torch.arange(1, len(scores) + 1)
    return [int(one) for one in ranks]


def _compared(own: Tensor, controls: Tensor, loss: Tensor, near: Tensor, params: AttributeParams) -> list[Metric]:
    """Average precision, and AUC against members, of the method, of both baselines, and of the control queries."""
    found = []
    methods = {"unlearning": list(own), "loss": [-loss] * len(own), "pixels": list(near), "controls": list(controls)}
    for name, rows in methods.items():
        if not rows:
            continue
        found.append(averaged("average_precision", [average_precision(row, params.known) for row in rows], name))
        if params.members:
            found.append(averaged("auc", [auc(row, params.known, params.members) for row in rows], name))
    chance = len(params.known) / own.shape[1]
    return [*found, Metric(name="average_precision", value=chance, unit="fraction", split="chance")]


def _picture(queries: Images, candidates: Images, tops: Sequence[list[int]], easiest: list[int]) -> Picture:
    """Each query and its top; below, the loss baseline's, which are the same for every query."""
    size = min(candidates.pixels.shape[1], 2 * _SMALL)
    asked, held = queries.resized(size).pixels, candidates.some(range(len(candidates)))
    blank = torch.full_like(asked[:1], 255)
    cells, names = [], []
    for number, places in enumerate(tops[:_SHOWN]):
        cells += [asked[number : number + 1], held.some(places).resized(size).pixels]
        names.append(f"query {number}")
    cells += [blank, held.some(easiest).resized(size).pixels]
    names.append("by loss alone")
    data = grid(torch.cat(cells), 1 + len(easiest), rows=names, scale=max(1, _SMALL // size))
    return Picture.of("left: the query; right: the images that rank first", data)
