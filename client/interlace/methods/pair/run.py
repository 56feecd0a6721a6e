"""`customize.pair` from beginning to end: look at the pair, train both adapters, measure, keep."""

from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import ArtifactName, Metric, Report
from interlace.methods.pair.draw import RIGHTS
from interlace.methods.pair.guide import Guided, Term
from interlace.methods.pair.spec import PairParams, PairResult
from interlace.methods.pair.train import CONTENT, STYLE, Trainer
from interlace.methods.shared import images as _images
from interlace.methods.shared.denoising.diffusion import Pipeline, opened
from interlace.methods.shared.denoising.lora import Layers, Wish, attached, digest
from interlace.methods.shared.images import Images
from interlace.protocol.errors import InvalidRequest

#: Of the correlation of the pictures' edges, under which they are taken to be of two things.
_ALIGNED = 0.3
#: Updates at the end whose losses are averaged.
_LAST = 50


def run(model: Any, params: PairParams, report: Report) -> PairResult:
    """Train on ``model``, a local nnsight `DiffusionModel`, which is left as it was. Raises InvalidRequest."""
    images = _images.opened(report, params.images)
    if len(images) != 2:
        raise InvalidRequest(f"`images` holds {len(images)} pictures; expected two: the content, then the style.")
    wishes = {STYLE: Wish(params.style_rank, targets=params.targets, first=None)}
    if params.orthogonal:
        wishes[STYLE] = Wish(params.style_rank, targets=params.targets, first=params.content_rank)
    if params.joint:
        first = 0 if params.orthogonal else None
        wishes = {CONTENT: Wish(params.content_rank, targets=params.targets, first=first), **wishes}
    with opened(model, report) as pipeline:
        torch.manual_seed(report.seed)  # for A, where it is random
        with attached(pipeline.unet, wishes, basis_seed=params.basis_seed) as layers:
            return _run(pipeline, layers, params, images)


def _run(pipeline: Pipeline, layers: Layers, params: PairParams, images: Images) -> PairResult:
    report = pipeline.report
    sampler = _Sampler(pipeline, layers, params)
    trainer = Trainer(pipeline, layers, params, pipeline.encode_images(images.pixels), sampler.after)
    if resumed := report.resumed():
        trainer.resume(resumed)
    done = trainer.train()
    aligned = edge_correlation(images.pixels)
    warnings = []
    if not done:
        warnings.append(f"Cancelled after {trainer.step} of {trainer.of} updates: the LoRAs are of that moment.")
    if aligned < _ALIGNED:
        warnings.append(
            f"The edges of the two pictures correlate by {aligned:.2f} only. They should show the same, aligned: what "
            "they differ in is what is learned."
        )
    said = _said(pipeline, params, images)
    named = [
        report.artifact("diffusers-lora", layers.tensors(name), layers.config(name, {**said, "role": name}), name=name)
        for name in reversed(trainer.names)
    ]
    pictures = sampler.kept()
    return PairResult(
        metrics=(
            *_metrics(layers, params, trainer),
            Metric(name="edge_correlation", value=aligned, unit="1", n=1, split="pair"),
        ),
        tables=(trainer.table(),),
        artifacts=(*named, *([pictures] if pictures else [])),
        warnings=tuple(warnings),
        style=named[0],
        content=named[1] if params.joint else None,
        pictures=pictures,
    )


def _said(pipeline: Pipeline, params: PairParams, images: Images) -> dict[str, Any]:
    """What the adapters' files say of where they come from."""
    return {
        "method": "customize.pair",
        "base_sha256": digest(pipeline.unet),
        "subject": params.subject,
        "suffix": params.suffix,
        "data_sha256": list(images.sha256),
        "rights": images.rights,
    }


def _metrics(layers: Layers, params: PairParams, trainer: Trainer) -> list[Metric]:
    seed = trainer.pipeline.report.seed
    found = []
    for column, name in ((1, CONTENT), (2, STYLE)):
        values = [value for row in trainer.curve[-_LAST:] if (value := row[column]) is not None]
        if values:
            found.append(
                Metric(name=f"{name}_loss", value=sum(values) / len(values), n=len(values), split="train", seed=seed)
            )
    if params.joint:
        overlap, cosine = between(layers)
        found.append(Metric(name="orth_max", value=overlap, unit="fraction", seed=seed))
        found.append(Metric(name="update_cosine", value=cosine, unit="1", seed=seed))
    return found


def between(layers: Layers) -> tuple[float, float]:
    """How the adapters lie to each other: the largest |A_c A_s^T| / (|A_c| |A_s|) of a layer, and the cosine of
    dW_c and dW_s over all layers."""
    content, style = layers.factors(CONTENT), layers.factors(STYLE)
    overlaps, inner, norms = [], 0.0, [0.0, 0.0]
    for path in content:
        (a, b), (c, d) = content[path], style[path]
        a, b, c, d = (one.double() for one in (a, b, c, d))
        cross = a @ c.T
        overlaps.append(float(cross.norm() / (a.norm() * c.norm())))
        inner += float(((d.T @ b) * cross.T).sum())
        for number, (down, up) in enumerate(((a, b), (c, d))):
            norms[number] += float(((up.T @ up) * (down @ down.T)).sum())
    size = (norms[0] * norms[1]) ** 0.5
    return max(overlaps), inner / size if size else 0.0


def edge_correlation(pixels: Tensor) -> float:
    """The correlation of how strong edges are in two pictures, uint8 [2, height, width, 3]: 1 for the same ones."""
    grey = pixels.float().mean(-1)
    down, right = grey.diff(dim=1)[:, :, :-1], grey.diff(dim=2)[:, :-1]
    both = torch.corrcoef((down.square() + right.square()).sqrt().flatten(1))
    return float(both[0, 1].nan_to_num())


class _Sampler:
    """Draws while it trains, and keeps what it drew."""

    def __init__(self, pipeline: Pipeline, layers: Layers, params: PairParams) -> None:
        self._pipeline, self._layers, self._params = pipeline, layers, params
        self._pixels: list[Tensor] = []
        self._steps: list[int] = []

    def after(self, step: int) -> None:
        of, params = self._params.samples, self._params
        end = params.first_steps + params.joint_steps
        if of is None or (step % of.every and step != end) or step <= params.first_steps:
            return
        pipeline = self._pipeline
        styled = pipeline.encode_prompts([f"{prompt} {params.suffix}" for prompt in of.prompts])
        term = Term(STYLE, styled, of.strength, (of.steps // 5, pipeline.passes(of.steps)))
        guide = Guided(pipeline, self._layers, pipeline.encode_prompts(of.prompts), of.guidance, [term])
        seeds = [pipeline.report.seed + number for number in range(len(of.prompts))]
        latents = pipeline.denoise(guide, pipeline.noise(seeds), seeds=seeds, steps=of.steps)
        self._pixels.append(pipeline.decode(latents))
        self._steps.append(step)
        pipeline.report.picture(self._pixels[-1], f"the style by now, at strength {of.strength:g}", step)

    def kept(self) -> ArtifactName | None:
        """What names the samples; None for none."""
        if not self._pixels or self._params.samples is None:
            return None
        captions = [f"{prompt}, step {step}" for step in self._steps for prompt in self._params.samples.prompts]
        images = Images.of_pixels(torch.cat(self._pixels), captions, RIGHTS)
        return _images.keep(self._pipeline.report, images, name="samples", steps=self._steps)
