"""A picture coming out of noise, and a style's strength as a slider."""

from interlace.methods.denoise.spec import StripResult
from interlace.protocol.errors import InvalidRequest
from interlace_server.page.tools.base import (
    Asked,
    Drawn,
    Extra,
    Field,
    Form,
    Strip,
    Tool,
    numbers,
    text,
    whole,
    written,
)
from interlace_state.models import ModelCard

_CODE = """import os

os.environ["NDIF_HOST"] = URL  # and your key: os.environ["NDIF_API_KEY"]
os.environ["HF_ENDPOINT"] = URL + "/hf"  # configurations of what is hosted there

import torch
from nnsight.modeling.diffusion import DiffusionModel

model = DiffusionModel({model})
how = {how}
scale = model.pipeline.vae.config.scaling_factor
model.pipeline.scheduler.set_timesteps(how["num_inference_steps"])
passes = len(model.pipeline.scheduler.timesteps)  # of the denoiser: some schedulers take a step twice

with model.session(remote=True):
    with model.generate({prompt}, output_type="latent", **how) as tracer:
        latents = []
        for step in tracer.iter[:passes]:
            latents.append(model.unet.input[:1])
        latents.append(model.output.images)
    with model.vae.trace(torch.cat(latents) / scale, fn="decode"):
        pictures = model.vae.decoder.output.detach().save()

pictures = (pictures / 2 + 0.5).clamp(0, 1)  # [passes + 1, 3, height, width], from noise to picture
print(pictures.shape)
"""


def _asked(form: Form) -> Asked:
    asked: Asked = {
        "prompt": text(form, "prompt", "Prompt"),
        "steps": whole(form, "steps", "Steps"),
        "guidance": numbers(form, "guidance", "Guidance")[0],
    }
    if adapter := form.get("adapter", "").strip():
        if not adapter.startswith("artifact:"):
            raise InvalidRequest(f"“Style” is {adapter[:64]!r}; expected artifact:ID of a LoRA.")
        asked |= {"adapter": adapter, "weights": numbers(form, "weights", "Strengths of the style")}
    return asked


def _form(asked: Asked) -> dict[str, str]:
    return {
        "prompt": str(asked["prompt"]),
        "steps": str(asked["steps"]),
        "guidance": f"{asked['guidance']:g}",
        "adapter": str(asked.get("adapter") or ""),
        "weights": ", ".join(f"{one:g}" for one in asked["weights"]) if asked.get("adapter") else _WEIGHTS,
    }


def _drawn(result: StripResult, asked: Asked, extra: Extra) -> Drawn:
    weights = list(dict.fromkeys(one.weight for one in result.pictures))
    strips = []
    if len(weights) > 1:
        finals = {one.weight: number for number, one in enumerate(result.pictures)}  # the last of each
        pictures = [(finals[weight], f"style at {weight:g}") for weight in weights if weight is not None]
        strips.append(Strip("How strong the style is", pictures, "Strength of the style"))
    for weight in weights:
        title = "From noise to picture" + ("" if weight is None else f", style at {weight:g}")
        row = [
            (number, f"after {one.step}" if one.step else "noise")
            for number, one in enumerate(result.pictures)
            if one.weight == weight
        ]
        strips.append(Strip(title, row))
    says = f"{asked['steps']} steps from noise to “{asked['prompt']}”"
    changes = {row[1]: float(row[3] or 0) for row in result.table("steps").rows if row[0] == weights[0]}
    if changes:
        says += f"; most changes in step {max(changes, key=lambda step: changes[step])}"
    return Drawn(f"{says}.", strips=strips)


def _trace(card: ModelCard, asked: Asked, seed: int) -> str | None:
    if asked.get("adapter"):
        return None  # several runs, each with an adapter's weight: the client's call is the shorter one
    how = {"num_inference_steps": asked["steps"], "guidance_scale": asked["guidance"], "seed": seed}
    return _CODE.format(model=written(card.key.repo_id), how=written(how), prompt=written(asked["prompt"]))


_WEIGHTS = "0, 0.25, 0.5, 0.75, 1"

TOOL = Tool(
    name="denoise",
    title="Denoising strip",
    lead="A diffusion model begins with noise and takes some of it away, step by step. With a style from the Lake, a "
    "slider shows how strong it is.",
    method="denoise.strip",
    fields=(
        Field("prompt", "Prompt", "What is to be seen.", value="a large red triangle"),
        Field("steps", "Steps", "More are slower, and finer.", "number", "10", least=1, most=200, step="1"),
        Field("guidance", "Guidance", "How closely it keeps to the prompt.", "number", "3", least=0, most=50),
        Field("adapter", "Style", "A LoRA from the Lake.", "choice", required=False, finds="kind:diffusers-lora"),
        Field("weights", "Strengths of the style", "Each is a picture of its own.", value=_WEIGHTS, required=False),
    ),
    asked=_asked,
    form=_form,
    drawn=_drawn,
    trace=_trace,
    wrapper="DiffusionModel",
)
