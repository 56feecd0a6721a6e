"""One run of a pipeline; its latents on their way are decoded afterwards, all at once."""

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from interlace.methods._sites import evaluating
from interlace.methods.base import Metric, Report, Table
from interlace.methods.denoise.spec import Shot, StripParams, StripResult
from interlace.protocol.errors import InvalidRequest

_SHOWN = 7


def run(model: Any, params: StripParams, report: Report) -> StripResult:
    """See `StripParams`. Raises InvalidRequest for what is no pipeline of this kind, and for a step that is not run."""
    pipeline = getattr(model, "pipeline", None)
    if not all(hasattr(pipeline, name) for name in ("unet", "vae", "scheduler")):
        raise InvalidRequest(
            f"`denoise.strip` needs a pipeline with a `unet` and a `vae`, as Stable Diffusion has; this model is a "
            f"{type(pipeline if pipeline is not None else model).__name__}."
        )
    chosen = _chosen(params)
    with evaluating(model), torch.no_grad(), _without_bar(pipeline):
        latents, rows = _walked(pipeline, params, report)
        shown = [step for step in chosen if step < len(latents)]
        pictures = _decoded(pipeline, [latents[step] for step in shown])
    stopped = () if len(latents) > params.steps else (f"Cancelled after {len(latents) - 1} of {params.steps} steps.",)
    return StripResult(
        metrics=(Metric(name="steps", value=float(len(latents) - 1), n=1),),
        tables=(Table(name="steps", columns=("step", "timestep", "change"), rows=tuple(rows)),),
        warnings=stopped,
        pictures=[_packed(step, image, params) for step, image in zip(shown, pictures, strict=True)],
    )


def _chosen(params: StripParams) -> list[int]:
    if params.show is None:
        count = min(_SHOWN, params.steps + 1)
        return [round(number * params.steps / (count - 1)) for number in range(count)]
    if strange := [step for step in params.show if step > params.steps]:
        raise InvalidRequest(f"`params.show` has {strange[0]}; the run has {params.steps} steps (`params.steps`).")
    return sorted(set(params.show))


def _walked(pipeline: Any, params: StripParams, report: Report) -> tuple[list[Tensor], list[tuple[int, float, float]]]:
    """The latents [1, channels, height, width] before the first step and after each; a row of each step."""
    found: list[Tensor] = []
    rows: list[tuple[int, float, float]] = []

    def before(_module: Any, args: tuple[Any, ...]) -> None:
        if not found:
            # What the denoiser reads first is the noise, scaled as the scheduler wants it.
            found.append(args[0][:1].detach().cpu().clone())

    def after(pipe: Any, step: int, timestep: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        now = kept["latents"][:1].detach().cpu().clone()
        change = float((now - found[-1]).float().norm() / found[-1].float().norm().clamp_min(1e-12))
        rows.append((step + 1, float(timestep), change))
        found.append(now)
        report.count(forwards=1, tokens=kept["latents"].shape[0])
        report.progress(step + 1, params.steps, change=change)
        if report.stopping:
            pipe._interrupt = True
        return kept

    handle = pipeline.unet.register_forward_pre_hook(before)
    try:
        pipeline(
            params.prompt,
            negative_prompt=params.negative_prompt or None,
            num_inference_steps=params.steps,
            guidance_scale=params.guidance,
            generator=torch.Generator().manual_seed(report.seed),
            callback_on_step_end=after,
            callback_on_step_end_tensor_inputs=["latents"],
            output_type="latent",
        )
    finally:
        handle.remove()
    return found, rows


def _decoded(pipeline: Any, latents: Sequence[Tensor]) -> list[Image.Image]:
    """One by one, as the pipeline does it at its end."""
    vae = pipeline.vae
    images = []
    for one in latents:
        shifted = one.to(vae.device, vae.dtype) / vae.config.scaling_factor
        shift = getattr(vae.config, "shift_factor", None)
        decoded = vae.decode(shifted + shift if shift else shifted, return_dict=False)[0]
        images += pipeline.image_processor.postprocess(decoded.detach(), output_type="pil")
    return images


def _packed(step: int, image: Image.Image, params: StripParams) -> Shot:
    image = image.convert("RGB")
    image.thumbnail((params.edge, params.edge), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return Shot(
        title=f"after {step} of {params.steps} steps" if step else "noise",
        png=base64.b64encode(file.getvalue()).decode(),
        step=step,
        width=image.width,
        height=image.height,
    )


@contextmanager
def _without_bar(pipeline: Any) -> Iterator[None]:
    """The steps are told by `report`, and once."""
    former = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**{**former, "disable": True})
    try:
        yield
    finally:
        pipeline._progress_bar_config = former
