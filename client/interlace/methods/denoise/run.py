"""One run of a pipeline for each weight; the latents of some steps are decoded, and shown, on the way."""

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.denoise.spec import Shot, StripParams, StripResult
from interlace.methods.shared.denoising import diffusion
from interlace.methods.shared.denoising.adapted import adapted
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
    steps = _passes(pipeline, params.steps)
    chosen = _chosen(params, steps)
    rows: list[tuple[float | None, int, float, float]] = []
    shots: list[Shot] = []
    warnings: list[str] = []
    with evaluating(model), torch.no_grad(), _without_bar(pipeline), _styled(pipeline, params, report) as use:
        for number, weight in enumerate(params.weights):
            use(weight)
            said = None if params.adapter is None else weight
            seen: dict[int, Image.Image] = {}

            def see(step: int, latents: Tensor, seen: dict[int, Image.Image] = seen, said: float | None = said) -> None:
                if step in chosen:
                    seen[step] = _decoded(pipeline, latents)
                    pixels = torch.from_numpy(numpy.array(seen[step].convert("RGB")))[None]
                    report.picture(pixels, _title(step, said, steps), step)

            rows += [(said, *row) for row in _walked(pipeline, params, report, steps, number * steps, see)]
            shots += [
                _packed(_title(step, said, steps), step, said, one, params.edge) for step, one in sorted(seen.items())
            ]
            if report.stopping:
                warnings.append(f"Cancelled after {len(rows)} of {len(params.weights) * steps} steps.")
                break
    return StripResult(
        metrics=(Metric(name="steps", value=float(len(rows)), n=len(params.weights)),),
        tables=(Table(name="steps", columns=("weight", "step", "timestep", "change"), rows=tuple(rows)),),
        warnings=tuple(warnings),
        pictures=shots,
    )


def _passes(pipeline: Any, steps: int) -> int:
    """How many steps the pipeline's own scheduler makes of so many: PNDM has one more, Heun nearly twice as many."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    return len(scheduler.timesteps)


def _chosen(params: StripParams, steps: int) -> list[int]:
    if params.show is None:
        count = min(_SHOWN, steps + 1)
        return [round(number * steps / (count - 1)) for number in range(count)]
    if strange := [step for step in params.show if step > steps]:
        raise InvalidRequest(f"`params.show` has {strange[0]}; the run has {steps} steps (`params.steps`).")
    return sorted(set(params.show))


def _walked(
    pipeline: Any, params: StripParams, report: Report, steps: int, done: int, see: Callable[[int, Tensor], None]
) -> list[tuple[int, float, float]]:
    """A row of each step. ``see`` gets the latents [1, channels, height, width] before the first, and after each."""
    found: list[Tensor] = []
    rows: list[tuple[int, float, float]] = []

    def before(_module: Any, args: tuple[Any, ...]) -> None:
        if not found:
            # What the denoiser reads first is the noise, in the scheduler's scale: Euler's divides it by its sigma.
            scale = pipeline.scheduler.scale_model_input(torch.ones_like(args[0][:1]), args[1])
            found.append((args[0][:1] / scale).detach().cpu())
            see(0, found[0])

    def after(pipe: Any, step: int, timestep: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        now = kept["latents"][:1].detach().cpu().clone()
        change = float((now - found[-1]).float().norm() / found[-1].float().norm().clamp_min(1e-12))
        rows.append((step + 1, float(timestep), change))
        found[:] = [now]
        see(step + 1, now)
        rows_of_forward = 2 if pipe.do_classifier_free_guidance else 1
        report.count(forwards=1, tokens=rows_of_forward * now.shape[-2] * now.shape[-1])
        report.progress(done + step + 1, len(params.weights) * steps, change=change)
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
    return rows


def _decoded(pipeline: Any, latents: Tensor) -> Image.Image:
    """As the pipeline does it at its end; SDXL's heeds what its autoencoder says of 16 bits, mean and spread."""
    vae, config = pipeline.vae, pipeline.vae.config
    large = hasattr(pipeline, "tokenizer_2")
    mean, spread = (config.get(name) if large else None for name in ("latents_mean", "latents_std"))
    with diffusion.exact(vae) if large else nullcontext(vae.dtype) as dtype:
        latents = latents.to(vae.device, dtype)
        if mean is None or spread is None:
            latents = latents / config.scaling_factor
        else:
            of_channels = (latents.new_tensor(one).view(1, -1, 1, 1) for one in (spread, mean))
            latents = latents * next(of_channels) / config.scaling_factor + next(of_channels)
        decoded = vae.decode(latents, return_dict=False)[0]
    image: Image.Image = pipeline.image_processor.postprocess(decoded.detach(), output_type="pil")[0]
    return image


@contextmanager
def _styled(pipeline: Any, params: StripParams, report: Report) -> Iterator[Callable[[float], None]]:
    """What sets the adapter's weight, if there is one. Raises InvalidArtifact for one of another model."""
    with adapted(pipeline, report, params.adapter, "style") as layers:
        yield lambda weight: layers.use({"style": weight} if weight else {}) if layers is not None else None


def _title(step: int, weight: float | None, steps: int) -> str:
    title = f"after {step} of {steps} steps" if step else "noise"
    return title if weight is None else f"{title}, style at {weight:g}"


def _packed(title: str, step: int, weight: float | None, image: Image.Image, edge: int) -> Shot:
    image = image.convert("RGB")
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return Shot(
        title=title,
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
