"""One run of a pipeline; its latents on their way are decoded afterwards, all at once."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.denoise.spec import Shot, StripParams, StripResult
from interlace.methods.shared import lora
from interlace.methods.shared.sites import evaluating
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
    rows: list[tuple[float | None, int, float, float]] = []
    shots: list[Shot] = []
    warnings: list[str] = []
    with evaluating(model), torch.no_grad(), _without_bar(pipeline), _styled(pipeline, params, report) as use:
        for number, weight in enumerate(params.weights):
            use(weight)
            said = None if params.adapter is None else weight
            latents, steps = _walked(pipeline, params, report, number * params.steps)
            rows += [(said, *row) for row in steps]
            shown = [step for step in chosen if step < len(latents)]
            pictures = _decoded(pipeline, [latents[step] for step in shown])
            shots += [_packed(step, said, one, params) for step, one in zip(shown, pictures, strict=True)]
            if report.stopping:
                warnings.append(f"Cancelled after {len(rows)} of {len(params.weights) * params.steps} steps.")
                break
    return StripResult(
        metrics=(Metric(name="steps", value=float(len(rows)), n=len(params.weights)),),
        tables=(Table(name="steps", columns=("weight", "step", "timestep", "change"), rows=tuple(rows)),),
        warnings=tuple(warnings),
        pictures=shots,
    )


def _chosen(params: StripParams) -> list[int]:
    if params.show is None:
        count = min(_SHOWN, params.steps + 1)
        return [round(number * params.steps / (count - 1)) for number in range(count)]
    if strange := [step for step in params.show if step > params.steps]:
        raise InvalidRequest(f"`params.show` has {strange[0]}; the run has {params.steps} steps (`params.steps`).")
    return sorted(set(params.show))


def _walked(
    pipeline: Any, params: StripParams, report: Report, done: int
) -> tuple[list[Tensor], list[tuple[int, float, float]]]:
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
        rows_of_forward = 2 if pipe.do_classifier_free_guidance else 1
        report.count(forwards=1, tokens=rows_of_forward * now.shape[-2] * now.shape[-1])
        report.progress(done + step + 1, len(params.weights) * params.steps, change=change)
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


@contextmanager
def _styled(pipeline: Any, params: StripParams, report: Report) -> Iterator[Callable[[float], None]]:
    """What sets the adapter's weight, if there is one. Raises InvalidArtifact for one of another model."""
    if params.adapter is None:
        yield lambda _weight: None
        return
    opened = report.open(params.adapter, "diffusers-lora")
    with lora.attached(pipeline.unet, {"style": lora.wish_of(opened.tensors, opened.config)}) as layers:
        layers.load("style", opened.tensors)
        yield lambda weight: layers.use({"style": weight} if weight else {})


def _packed(step: int, weight: float | None, image: Image.Image, params: StripParams) -> Shot:
    title = f"after {step} of {params.steps} steps" if step else "noise"
    image = image.convert("RGB")
    image.thumbnail((params.edge, params.edge), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return Shot(
        title=title if weight is None else f"{title}, style at {weight:g}",
        png=base64.b64encode(file.getvalue()).decode(),
        step=step,
        weight=weight,
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
