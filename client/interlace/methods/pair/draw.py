"""`customize.generate` from beginning to end: put the styles' layers in, draw, keep the pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Opened, Report, Table
from interlace.methods.pair.guide import Guide, Guided, Scaled, Term
from interlace.methods.pair.spec import GenerateParams, GenerateResult
from interlace.methods.shared.denoising.diffusion import Pipeline, opened
from interlace.methods.shared.denoising.lora import OURS, Layers, attached, digest, wish_of
from interlace.methods.shared.images import Images, keep
from interlace.protocol.errors import AdapterRefused

RIGHTS = "drawn by a model"


def run(model: Any, params: GenerateParams, report: Report) -> GenerateResult:
    """Draw with ``model``, a local nnsight `DiffusionModel`, which is left as it was.

    Raises InvalidRequest; AdapterRefused for a style of another base, InvalidArtifact for one that does not fit.
    """
    found = [report.open(style.adapter, "diffusers-lora") for style in params.styles]
    with opened(model, report) as pipeline:
        check_bases(pipeline, found)
        wishes = {f"style_{i}": wish_of(one.tensors, one.config) for i, one in enumerate(found)}
        with attached(pipeline.unet, wishes) as layers:
            for name, one in zip(wishes, found, strict=True):
                layers.load(name, one.tensors)
            return _drawn(pipeline, layers, params, report)


def check_bases(pipeline: Pipeline, adapters: Sequence[Opened]) -> None:
    """Raises AdapterRefused where an adapter names the weights that it was made for, and these are others."""
    stated = [(one.ref, one.config.get(OURS)) for one in adapters]
    named = [(ref, said["base_sha256"]) for ref, said in stated if isinstance(said, Mapping) and "base_sha256" in said]
    if not named:
        return
    here = digest(pipeline.unet)
    for ref, base in named:
        if base != here:
            raise AdapterRefused(
                f"Adapter {ref} was made for a denoiser with the weights {str(base)[:16]}..., and this one has "
                f"{here[:16]}...: it would draw something, and not what it learned."
            )


def _drawn(pipeline: Pipeline, layers: Layers, params: GenerateParams, report: Report) -> GenerateResult:
    texts = [prompt for prompt in params.prompts for _ in range(params.per_prompt)]
    pictures: list[Tensor] = []
    norms: list[tuple[int, Sequence[tuple[float, ...]]]] = []
    rows = 0
    passes = pipeline.passes(params.steps)
    whole = -(-len(texts) // params.batch) * passes
    for first in range(0, len(texts), params.batch):
        if report.stopping and pictures:
            break
        some = texts[first : first + params.batch]
        guide = guide_of(pipeline, layers, params, some)
        seeds = [report.seed + first + number for number in range(len(some))]

        def tell(done: int, _: Tensor, before: int = first // params.batch * passes) -> None:
            report.progress(before + done, whole)

        noise = pipeline.noise(seeds, params.size)
        latents = pipeline.denoise(guide, noise, seeds=seeds, steps=params.steps, tell=tell)
        pictures.append(pipeline.decode(latents))
        report.picture(pictures[-1], f"pictures {first} to {first + len(some) - 1}")
        norms.append((len(some), guide.norms))
        rows += guide.rows
    images = Images.of_pixels(torch.cat(pictures), texts[: sum(map(len, pictures))], RIGHTS)
    kept = keep(report, images, name="pictures", suffixes=[style.suffix for style in params.styles])
    warnings = () if len(images) == len(texts) else (f"Cancelled after {len(images)} of {len(texts)} pictures.",)
    return GenerateResult(
        metrics=(Metric(name="denoiser_rows", value=rows, n=len(images)),),
        tables=(_terms(norms, len(params.styles)),),
        artifacts=(kept,),
        images=kept,
        denoiser_rows=rows,
        warnings=warnings,
    )


def guide_of(pipeline: Pipeline, layers: Layers, params: GenerateParams, texts: Sequence[str]) -> Guide:
    """What predicts for these prompts; the adapters are called `style_0` and so on."""
    prompts = pipeline.encode_prompts(texts)
    terms, passes = [], pipeline.passes(params.steps)
    for number, style in enumerate(params.styles):
        words = pipeline.encode_prompts([f"{text} {style.suffix}".strip() for text in texts])
        steps = round(style.start * passes), round(style.end * passes)
        terms.append(Term(f"style_{number}", words, style.strength, steps))
    if params.how == "style_guidance":
        return Guided(pipeline, layers, prompts, params.guidance, terms)
    suffixes = " ".join(style.suffix for style in params.styles)
    styled = pipeline.encode_prompts([f"{text} {suffixes}".strip() for text in texts])
    return Scaled(pipeline, layers, styled, prompts, params.guidance, terms)


def _terms(norms: Sequence[tuple[int, Sequence[tuple[float, ...]]]], styles: int) -> Table:
    """Means over batches, each by its pictures."""
    columns = ("step", "t", "prompt", *(f"style_{number}" for number in range(styles)))
    rows = []
    whole = sum(n for n, _ in norms)
    for of_step in zip(*(rows for _, rows in norms), strict=False):
        parts = [[n * one for one in row[2:]] for (n, _), row in zip(norms, of_step, strict=False)]
        rows.append((int(of_step[0][0]), of_step[0][1], *(sum(column) / whole for column in zip(*parts, strict=True))))
    return Table(name="terms", columns=columns, rows=tuple(rows))
