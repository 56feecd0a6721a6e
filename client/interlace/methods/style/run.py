"""`customize.style` from beginning to end: encode, train, draw with and without."""

from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.shared.denoising import diffusion, lora
from interlace.methods.shared.images import Images, grid, opened
from interlace.methods.shared.judge import Judge
from interlace.methods.shared.pictures import Picture
from interlace.methods.style.judged import judged
from interlace.methods.style.spec import HELD, TARGETS, StyleParams, StyleResult
from interlace.methods.style.train import NAME, Trainer, examples, styled

_ROWS = 100  # of the table `history`
COLUMNS = 8
_SMALL = 64  # pixels of a drawn picture's side, about


def run(model: Any, params: StyleParams, report: Report) -> StyleResult:
    """Train an adapter of ``model``, a nnsight `DiffusionModel`, which is left as it was. Raises InvalidRequest."""
    images = opened(report, params.images)
    judge = None
    if params.evaluation.judge is not None:
        judge = Judge.of(report.open(params.evaluation.judge, "probe"))
        of = params.evaluation
        judge.check([of.style, *([of.plain_style] if of.plain_style else []), *of.contents])
    with diffusion.opened(model, report) as pipeline:
        wish = lora.Wish(params.rank, params.alpha, TARGETS[params.target])
        with lora.attached(pipeline.unet, {NAME: wish}) as layers:
            return _run(pipeline, layers, images, judge, params, report)


def _run(
    pipeline: diffusion.Pipeline,
    layers: lora.Layers,
    images: Images,
    judge: Judge | None,
    params: StyleParams,
    report: Report,
) -> StyleResult:
    trainer = Trainer(pipeline, layers, examples(pipeline, images, params), params, report.seed)
    before = trainer.held(report)
    history, samples = _train(pipeline, layers, trainer, images, params, report)
    after = trainer.held(report)
    metrics = [
        Metric(name=name, value=value, unit="mean square", split=split, n=HELD)
        for split, pair in (("before", before), ("after", after))
        for name, value in zip(("style_loss", "preserve_mse"), pair, strict=True)
    ]
    drawn, more = _evaluated(pipeline, layers, images, judge, params, report)
    matched = len(layers.factors(NAME))
    said = {
        "method": "customize.style",
        "suffix": params.suffix,
        "base_sha256": lora.digest(pipeline.unet),
        "data_sha256": list(images.sha256),
        "rights": images.rights,
    }
    adapter = report.artifact("diffusers-lora", layers.tensors(NAME), layers.config(NAME, said), name="style")
    stopped = ("Cancelled: trained and drawn for fewer steps than asked.",) if report.stopping else ()
    return StyleResult(
        adapter=adapter,
        matched=matched,
        metrics=(*metrics, *more),
        tables=(Table(name="history", columns=("step", "style_loss", "preserve_loss"), rows=history),),
        artifacts=(adapter,),
        pictures=(*_strip(samples), *drawn),
        warnings=stopped,
    )


def _train(
    pipeline: diffusion.Pipeline,
    layers: lora.Layers,
    trainer: Trainer,
    images: Images,
    params: StyleParams,
    report: Report,
) -> tuple[tuple[tuple[float, ...], ...], list[tuple[int, Tensor]]]:
    """The losses, averaged over about a hundredth of all steps each, and what was drawn on the way."""
    history: list[tuple[float, ...]] = []
    samples: list[tuple[int, Tensor]] = []
    start = 0
    if (checkpoint := report.resumed()) is not None:
        trainer.resume(dict(checkpoint.tensors), checkpoint.step)
        start, history = checkpoint.step, [tuple(row) for row in checkpoint.state["history"]]
    every = max(1, params.steps // _ROWS)
    sums = [0.0, 0.0, 0.0]
    for step in range(start + 1, params.steps + 1):
        style, preserve = trainer.step()
        sums = [sums[0] + style, sums[1] + preserve, sums[2] + 1]
        if step % every == 0 or step == params.steps:
            history.append((step, sums[0] / sums[2], sums[1] / sums[2]))
            sums = [0.0, 0.0, 0.0]
        report.progress(step, _all_steps(params, images), style_loss=style, preserve_loss=preserve)
        if params.sample_every and step % params.sample_every == 0:
            prompts = [styled(one, params.suffix) for one in images.captions[:COLUMNS]]
            samples.append((step, _draw(pipeline, layers, prompts, True, params, report)))
            report.picture(samples[-1][1], "the style by now", step)
        tensors, state = trainer.state()
        report.checkpoint(step, tensors, {**state, "history": history})
        if report.stopping:
            break
    return tuple(history), samples


def _all_steps(params: StyleParams, images: Images) -> int:
    """Of training, and of drawing afterwards."""
    of = params.evaluation
    return params.steps + 4 * of.steps * -(-len(of.prompts or images.captions) * of.n_per_prompt // of.batch)


def _draw(
    pipeline: diffusion.Pipeline,
    layers: lora.Layers,
    prompts: list[str],
    adapted: bool,
    params: StyleParams,
    report: Report,
    row: int = 0,
) -> Tensor:
    """One picture of each prompt, with a noise of its own that is the same whatever is on.

    ``row`` of the evaluation's four: where its progress begins. 0: nothing is told.
    """
    of = params.evaluation
    layers.use({NAME: 1.0} if adapted else {})
    seeds = [report.seed * 1_000_003 % (1 << 31) + number for number in range(len(prompts))]
    size = (params.resolution, params.resolution) if params.resolution else None
    batches = -(-len(prompts) // of.batch)
    parts: list[Tensor] = []

    passes = pipeline.passes(of.steps)

    def tell(done: int, _: Tensor) -> None:
        at = ((row - 1) * batches + len(parts)) * passes + done
        if row:
            report.progress(params.steps + at, params.steps + 4 * batches * passes)

    for start in range(0, len(prompts), of.batch):
        some = slice(start, start + of.batch)
        drawn = pipeline.draw(
            prompts[some], seeds=seeds[some], steps=of.steps, guidance=of.guidance, size=size, tell=tell
        )
        parts.append(drawn)
    layers.use({NAME: 1.0}, train=(NAME,))
    return torch.cat(parts)


def _evaluated(
    pipeline: diffusion.Pipeline,
    layers: lora.Layers,
    images: Images,
    judge: Judge | None,
    params: StyleParams,
    report: Report,
) -> tuple[tuple[Picture, ...], tuple[Metric, ...]]:
    of = params.evaluation
    if not of.n_per_prompt or report.stopping:
        return (), ()
    plain = [one for one in (of.prompts or images.captions) for _ in range(of.n_per_prompt)]
    contents = [one for one in of.contents for _ in range(of.n_per_prompt)]
    metrics: list[Metric] = []
    rows: list[tuple[str, Tensor]] = []
    four = (
        ("style prompt", True, True),
        ("plain prompt", True, False),
        ("base, style prompt", False, True),
        ("base, plain prompt", False, False),
    )
    for row, (split, adapted, suffix) in enumerate(four, 1):
        prompts = [styled(one, params.suffix) for one in plain] if suffix else plain
        pixels = _draw(pipeline, layers, prompts, adapted, params, report, row)
        rows.append((split, pixels))
        if judge is not None:
            metrics += judged(judge, pixels, split, of.style, of.plain_style, contents)
    if judge is not None:
        leak = next(one for one in metrics if one.split == "plain prompt" and one.name == "style")
        metrics.append(leak.model_copy(update={"name": "leakage"}))
    return _pictures(rows), tuple(metrics)


def _pictures(rows: list[tuple[str, Tensor]]) -> tuple[Picture, ...]:
    each = [small(pixels[:COLUMNS]) for _, pixels in rows]
    columns = len(each[0])
    data = grid(torch.cat(each), columns, rows=[name for name, _ in rows], scale=scale_of(each[0]))
    return (Picture.of("with and without the adapter, with and without the suffix", data),)


def _strip(samples: list[tuple[int, Tensor]]) -> tuple[Picture, ...]:
    if not samples:
        return ()
    each = [small(pixels) for _, pixels in samples]
    names = [f"step {step}" for step, _ in samples]
    return (Picture.of("while it trained", grid(torch.cat(each), len(each[0]), rows=names, scale=scale_of(each[0]))),)


def small(pixels: Tensor) -> Tensor:
    """Of at most 128 pixels a side, for a grid."""
    if pixels.shape[1] <= 2 * _SMALL:
        return pixels
    return Images.of_pixels(pixels, "", "drawn").resized(2 * _SMALL).pixels


def scale_of(pixels: Tensor) -> int:
    """By how much a grid enlarges them."""
    return max(1, _SMALL // len(pixels[0]))
