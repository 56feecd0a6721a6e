"""`images.stylise`: pictures noised to a start step and drawn again, the adapter off while t is over the gate."""

from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report
from interlace.methods.shared.denoising import diffusion, lora
from interlace.methods.shared.denoising.adapted import adapted
from interlace.methods.shared.images import Images, grid, keep, opened
from interlace.methods.shared.judge import Judge
from interlace.methods.shared.pictures import Picture
from interlace.methods.style.judged import judged
from interlace.methods.style.run import COLUMNS, scale_of, small
from interlace.methods.style.spec import StyliseParams, StyliseResult
from interlace.methods.style.train import NAME, styled
from interlace.protocol.errors import InvalidRequest


def run(model: Any, params: StyliseParams, report: Report) -> StyliseResult:
    """Redraw pictures on ``model``, which is left as it was. Raises InvalidRequest, InvalidArtifact."""
    images = opened(report, params.images)
    judge = Judge.of(report.open(params.judge, "probe")) if params.judge is not None else None
    if judge is not None:
        judge.check([params.style, *params.contents])
    if params.contents and len(params.contents) != len(images):
        raise InvalidRequest(
            f"`contents` has {len(params.contents)} for {len(images)} images; give one for each, or none."
        )
    with diffusion.opened(model, report) as pipeline, adapted(pipeline, report, params.adapter, NAME) as layers:
        images = images.resized(params.resolution or int(pipeline.unet.config.sample_size) * pipeline.pixels)
        start, on, total = _planned(pipeline, params)
        parts = []
        for rows in torch.arange(len(images)).split(params.batch):
            parts.append(_redrawn(pipeline, layers, images, rows.tolist(), start, params, report))
            if report.stopping:
                break
        if layers is not None:
            layers.use({})
    made = torch.cat(parts)
    some = images.some(range(len(made)))
    ref = keep(report, Images.of_pixels(made, some.captions, f"made from: {some.rights}"), name="stylised")
    return StyliseResult(
        steps_on=on if layers is not None else 0,
        steps_run=total,
        metrics=_metrics(some.pixels, made, judge, params),
        artifacts=(ref,),
        pictures=(_picture(some.pixels, made),),
        warnings=("Cancelled: not all images were redrawn.",) if len(made) < len(images) else (),
    )


def _planned(pipeline: diffusion.Pipeline, params: StyliseParams) -> tuple[int, int, int]:
    """The first step that is run, how many have the adapter on, and how many there are. Raises InvalidRequest."""
    times = pipeline.schedule(params.steps).timesteps.tolist()
    left = [t for t in times if t <= params.start_t]
    if not left:
        raise InvalidRequest(
            f"start_t is {params.start_t}, and the last of {params.steps} steps is at t = {times[-1]:g}; expected more."
        )
    return len(times) - len(left), sum(_on(float(t), params) for t in left), len(left)


def _on(t: float, params: StyliseParams) -> bool:
    """The gate."""
    return params.gate_t < 0 or t <= params.gate_t


def _redrawn(
    pipeline: diffusion.Pipeline,
    layers: lora.Layers | None,
    given: Images,
    rows: list[int],
    start: int,
    params: StyliseParams,
    report: Report,
) -> Tensor:
    images = given.some(rows)
    latents = pipeline.encode_images(images.pixels).mean
    prompts = pipeline.encode_prompts([styled(one, params.suffix) for one in images.captions])
    seeds = [report.seed * 1_000_003 % (1 << 31) + row for row in rows]
    noise = pipeline.noise(seeds, (images.pixels.shape[1], images.pixels.shape[2]))
    guided = pipeline.guided(prompts, params.guidance)

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        if layers is not None:
            layers.use({NAME: params.scale} if _on(float(t), params) else {})
        return guided(noisy, t)

    left = pipeline.passes(params.steps) - start
    before, of = rows[0] // params.batch * left, -(-len(given) // params.batch) * left

    def tell(done: int, _: Tensor) -> None:
        report.progress(before + done, of)

    made = pipeline.denoise(predict, noise, seeds=seeds, steps=params.steps, latents=latents, start=start, tell=tell)
    pixels = pipeline.decode(made)
    report.picture(pixels, f"redrawn: pictures {rows[0]} to {rows[-1]}", before + left)
    return pixels


def _metrics(before: Tensor, after: Tensor, judge: Judge | None, params: StyliseParams) -> tuple[Metric, ...]:
    changed = ((before.float() - after.float()) / 255).square().mean().sqrt()
    metrics = [Metric(name="distance", value=float(changed), unit="of the range", n=len(after))]
    if judge is not None:
        for split, pixels in (("before", before), ("after", after)):
            metrics += judged(judge, pixels, split, params.style, "", params.contents[: len(pixels)])
    return tuple(metrics)


def _picture(before: Tensor, after: Tensor) -> Picture:
    both = torch.cat([small(before[:COLUMNS]), small(after[:COLUMNS])])
    data = grid(both, len(both) // 2, rows=["given", "redrawn"], scale=scale_of(both))
    return Picture.of("given and redrawn", data)
