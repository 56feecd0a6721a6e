"""`lake.attribute_images`: which of some adapters has most likely drawn pictures, by how well each denoises them.

A denoiser's loss bounds a picture's log-likelihood from below (Ho et al. 2020, equation 12), up to weights of t; here
they are equal. All candidates are given the same noise at the same t, so that what differs is the candidate.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from interlace.methods.base import Metric, Report, Table
from interlace.methods.lake.attribute import compared, margin_of
from interlace.methods.lake.spec import AttributeImagesParams, AttributeImagesResult
from interlace.methods.shared import images, intervals
from interlace.methods.shared.denoising import diffusion
from interlace.methods.shared.denoising.adapted import adapted
from interlace.methods.shared.denoising.diffusion import Pipeline, Prompts
from interlace.protocol.errors import InvalidRequest

_MODEL = "model"
_NAME = "candidate"


def run(model: Any, params: AttributeImagesParams, report: Report) -> AttributeImagesResult:
    """See `AttributeImagesParams`. Raises InvalidRequest for fewer than two candidates."""
    names = [*([_MODEL] if params.include_model else []), *params.candidates]
    if len(set(names)) < max(2, len(names)):
        raise InvalidRequest("`candidates` must be two or more different ones, the hosted model among them.")
    given = images.opened(report, params.images)
    losses: list[list[float]] = []
    with diffusion.opened(model, report) as pipeline:
        given = given.resized(int(pipeline.unet.config.sample_size) * pipeline.pixels)
        latents = pipeline.encode_images(given.pixels).mean
        prompts = pipeline.encode_prompts([one.rstrip().rstrip(".") + params.suffix for one in given.captions])
        for number, name in enumerate(names):
            with adapted(pipeline, report, None if name == _MODEL else name, _NAME) as layers:
                if layers is not None:
                    layers.use({_NAME: 1.0})
                losses.append(_losses(pipeline, latents, prompts, params, report))
            if report.stopping:
                break
            report.progress(number + 1, len(names))
    read, warnings = compared(names, losses, len(latents), "images")
    return _result(names[: len(read)], read, params, report.seed, warnings)


def _losses(
    pipeline: Pipeline, latents: Tensor, prompts: Prompts, params: AttributeImagesParams, report: Report
) -> list[float]:
    """Each image's mean square error over its draws, which are the same for each candidate; until somebody cancels."""
    t = ((torch.arange(params.draws) + 0.5) / params.draws * pipeline.timesteps).long()
    found = []
    with torch.no_grad():
        for number, one in enumerate(latents):
            dice = torch.Generator().manual_seed((report.seed + number) % (1 << 63))
            noise = torch.randn((params.draws, *one.shape), generator=dice).to(one)
            total = 0.0
            for some in torch.arange(params.draws).split(params.batch):
                rows = one[None].expand(len(some), -1, -1, -1)
                told = prompts[number : number + 1].repeated(len(some))
                said = pipeline.predict(pipeline.noised(rows, noise[some], t[some]), t[some], told)
                wanted = pipeline.target(rows, noise[some], t[some])
                total += float(mse_loss(said.double(), wanted.double(), reduction="none").mean((1, 2, 3)).sum())
            # To 6 digits: the last bits of a forward hang on where in memory its weights lie.
            found.append(float(f"{total / params.draws:.6g}"))
            if report.stopping:
                break
    return found


def _result(
    names: list[str], losses: Tensor, params: AttributeImagesParams, seed: int, warnings: list[str]
) -> AttributeImagesResult:
    """From losses [candidates, images]."""
    order = losses.sum(1).argsort(stable=True).tolist()
    wins = torch.bincount(losses.argmin(0), minlength=len(names))
    rows = []
    for one in order:
        loss, interval = intervals.mean(losses[one].tolist())
        low, high = interval or (None, None)
        rows.append((names[one], loss, low, high, int(wins[one])))
    n = losses.shape[1]
    margins, decided = [], False
    if len(order) > 1:
        margin, interval = margin_of(losses[order[1]] - losses[order[0]], torch.ones(n), params.resamples, seed)
        margins = [Metric(name="margin", value=margin, n=n, ci95=interval)]
        decided = interval is not None and interval[0] > 0
        if not decided:
            warnings.append(
                f"Undecided between {names[order[0]]} and {names[order[1]]}: give more images, or more draws."
            )
    return AttributeImagesResult(
        metrics=(
            *margins,
            Metric(name="decided", value=float(decided), n=n),
        ),
        tables=(Table(name="candidates", columns=("candidate", "loss", "low", "high", "wins"), rows=tuple(rows)),),
        warnings=tuple(warnings),
        best=names[order[0]],
    )
