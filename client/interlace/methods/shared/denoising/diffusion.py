"""A pipeline of Stable Diffusion's class as a method sees it: prompts and pictures in, noise predicted, pictures out.

A denoiser ``unet``, an autoencoder ``vae``, one text encoder or SDXL's two, and a scheduler that knows
``alphas_cumprod``. Latents are [n, channels, height, width] as the denoiser has them, already scaled; pictures are
uint8 [n, height, width, 3]. What the denoiser says is noise, velocity or the picture, as its scheduler has it:
guidance is linear in each of them. LoRA layers are in `lora.py`.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interlace.methods.base import Report
from interlace.protocol.errors import InvalidRequest

#: Latents [n, ...] and a timestep [] -> what the denoiser says of them, or what guidance makes of that.
Predict = Callable[[Tensor, Tensor], Tensor]
#: Steps done, and the latents after them.
Tell = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Prompts:
    """What the denoiser is told, a row for each picture."""

    #: [n, tokens, width]
    states: Tensor
    #: [n, width], of SDXL.
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Any) -> "Prompts":
        """Some rows: a slice, or a tensor of indices."""
        return Prompts(self.states[rows], None if self.pooled is None else self.pooled[rows])

    def repeated(self, times: int) -> "Prompts":
        """Each row so many times, one after the other."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(times, 0)
        return Prompts(self.states.repeat_interleave(times, 0), pooled)

    def beside(self, other: "Prompts") -> "Prompts":
        """These rows, then those."""
        pooled = None
        if self.pooled is not None and other.pooled is not None:
            pooled = torch.cat([self.pooled, other.pooled])
        return Prompts(torch.cat([self.states, other.states]), pooled)


@contextmanager
def opened(model: Any, report: Report) -> Iterator["Pipeline"]:
    """A nnsight `DiffusionModel` with weights, for a method; left as it was. Raises InvalidRequest for another one."""
    pipe: Any = getattr(model, "pipeline", None)
    found = {name: getattr(pipe, name, None) for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")}
    if missing := sorted(name for name, part in found.items() if part is None):
        raise InvalidRequest(
            f"This method runs on a diffusion pipeline of Stable Diffusion's class; a {type(pipe or model).__name__} "
            f"has no {', '.join(missing)}."
        )
    if not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise InvalidRequest(f"This method cannot train against a {type(pipe.scheduler).__name__} (flow matching).")
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    modes = [(module, module.training) for module in modules]
    wanted = [(one, one.requires_grad) for module in modules for one in module.parameters()]
    for module in modules:
        module.eval().requires_grad_(False)
    try:
        yield Pipeline(pipe, report)
    finally:
        for module, mode in modes:
            module.train(mode)
        for parameter, gradient in wanted:
            parameter.requires_grad_(gradient)
            parameter.grad = None


@contextmanager
def exact(vae: Any) -> Iterator[torch.dtype]:
    """An autoencoder in 32 bits where it says that 16 are too few for it; the type that it is in."""
    former = vae.dtype
    wanted = torch.float32 if former == torch.float16 and vae.config.get("force_upcast") else former
    if wanted != former:
        vae.to(wanted)
    try:
        yield wanted
    finally:
        if wanted != former:
            vae.to(former)


class Pipeline:
    """Use `opened`."""

    def __init__(self, pipe: Any, report: Report) -> None:
        self.pipe, self.report = pipe, report
        self.unet, self.vae, self.scheduler = pipe.unet, pipe.vae, pipe.scheduler
        self.device, self.dtype = next(self.unet.parameters()).device, self.unet.dtype
        #: How many timesteps it was trained on; t is 0 to one less.
        self.timesteps: int = self.scheduler.config.num_train_timesteps
        #: Pixels of a latent's side.
        self.pixels: int = pipe.vae_scale_factor
        #: [timesteps], on the CPU.
        self.alphas: Tensor = self.scheduler.alphas_cumprod.detach().cpu().double()

    # -- in and out ----------------------------------------------------------

    def encode_prompts(self, prompts: Sequence[str]) -> Prompts:
        """Texts as the denoiser gets them; ``""`` is what it gets without guidance."""
        how = {"device": self.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        with torch.no_grad():
            found = self.pipe.encode_prompt(prompt=list(prompts), **how)
        return Prompts(found[0], found[2] if len(found) > 2 else None)

    def encode_nothing(self, n: int) -> Prompts:
        """What the denoiser gets in the half of guidance that has no prompt, n rows."""
        empty = self.encode_prompts([""]).repeated(n)
        if empty.pooled is not None and self.pipe.config.get("force_zeros_for_empty_prompt"):
            return Prompts(torch.zeros_like(empty.states), torch.zeros_like(empty.pooled))
        return empty

    def encode_images(self, images: Tensor) -> "Encoded":
        """Pictures, uint8 [n, height, width, 3], as latents. Raises InvalidRequest for sides that do not go."""
        height, width = images.shape[1:3]
        step = self.pixels * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if images.ndim != 4 or images.shape[-1] != 3 or height % step or width % step:
            raise InvalidRequest(
                f"Pictures are of the shape {list(images.shape)}; expected [n, height, width, 3] with sides that are "
                f"multiples of {step} pixels."
            )
        pixels = images.to(self.device).movedim(-1, 1).float() / 127.5 - 1
        with torch.no_grad(), exact(self.vae) as dtype:
            spread = self.vae.encode(pixels.to(dtype)).latent_dist
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        return Encoded((spread.mean.float() - shift) * scale, spread.std.float() * scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as pictures, uint8 [n, height, width, 3], on the CPU."""
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        with torch.no_grad(), exact(self.vae) as dtype:
            pixels = self.vae.decode((latents / scale + shift).to(dtype), return_dict=False)[0]
        levels = (pixels.float() / 2 + 0.5).clamp(0, 1) * 255
        return levels.round().to(torch.uint8).movedim(1, -1).cpu().contiguous()

    # -- noise ---------------------------------------------------------------

    def noise(self, seeds: Sequence[int], size: tuple[int, int] | None = None) -> Tensor:
        """Noise in the shape of latents, a row for each seed: that with which nnsight's `generate(seed=)` begins.

        ``size`` is height and width in pixels; None: what the denoiser was made for.
        """
        height, width = (side // self.pixels for side in size) if size else (self.unet.config.sample_size,) * 2
        shape = (1, self.unet.config.in_channels, height, width)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=self.dtype) for seed in seeds]
        return torch.cat(rows).to(self.device)

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(a_t) x + sqrt(1 - a_t) noise, with t [n]."""
        keep, add = self._parts(t, latents)
        return keep * latents + add * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should say of x_t: what a loss compares with."""
        keep, add = self._parts(t, latents)
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return keep * noise - add * latents
        return noise if kind == "epsilon" else latents

    def _parts(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas[t.cpu()].view(-1, 1, 1, 1)
        return alphas.sqrt().to(like), (1 - alphas).sqrt().to(like)

    def predict(self, noisy: Tensor, t: Tensor, prompts: Prompts, *, backward: bool = False) -> Tensor:
        """What the denoiser says of x_t; t is [] or [n]. ``backward``: with a graph, and counted as gone through."""
        more: dict[str, Any] = {}
        if prompts.pooled is not None:
            height, width = (side * self.pixels for side in noisy.shape[-2:])
            ids = torch.tensor([height, width, 0, 0, height, width], dtype=self.dtype, device=self.device)
            more["added_cond_kwargs"] = {"text_embeds": prompts.pooled, "time_ids": ids.repeat(len(noisy), 1)}
        positions = len(noisy) * noisy.shape[-2] * noisy.shape[-1]
        self.report.count(forwards=1, backwards=int(backward), tokens=positions)
        with torch.set_grad_enabled(backward):
            said: Tensor = self.unet(
                noisy.to(self.dtype),
                t.to(self.device),
                encoder_hidden_states=prompts.states,
                return_dict=False,
                **more,
            )[0]
        return said

    # -- drawing -------------------------------------------------------------

    def guided(self, prompts: Prompts, scale: float, negative: Prompts | None = None) -> Predict:
        """Classifier-free guidance: e(0) + scale (e(c) - e(0)). A scale of 1 or less goes without, as in diffusers."""
        if scale <= 1:
            return lambda noisy, t: self.predict(noisy, t, prompts)
        both = (negative or self.encode_nothing(len(prompts))).beside(prompts)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            bare, told = self.predict(torch.cat([noisy, noisy]), t, both).chunk(2)
            return bare + scale * (told - bare)

        return predict

    def schedule(self, steps: int) -> Any:
        """A scheduler of its own, as the pipeline has it, set to so many steps; its `timesteps` fall."""
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    def passes(self, steps: int) -> int:
        """How often the denoiser is asked in so many steps: PNDM takes one twice, Heun all but the last."""
        return len(self.schedule(steps).timesteps)

    def denoise(
        self,
        predict: Predict,
        noise: Tensor,
        *,
        seeds: Sequence[int],
        steps: int,
        latents: Tensor | None = None,
        start: int = 0,
        tell: Tell | None = None,
    ) -> Tensor:
        """Latents out of noise [n, ...], or from picture latents noised to step ``start`` on (SDEdit).

        ``seeds`` are those that ``noise`` was drawn with: a scheduler that adds noise on the way goes on from them, row
        by row, as the pipeline does. Ends early, with what there is, when the report is stopping.
        """
        scheduler = self.schedule(steps)
        left = scheduler.timesteps[start:]
        if not len(left):
            raise InvalidRequest(f"Nothing is left to denoise: it starts at step {start} of {steps}.")
        if latents is None:
            state = noise * scheduler.init_noise_sigma
        else:
            state = scheduler.add_noise(latents.to(noise), noise, left[:1].repeat(len(noise)))
        if start and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        more: dict[str, Any] = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            more["generator"] = [self._after_noise(one, noise) for one in seeds]
        with torch.no_grad():
            for done, t in enumerate(left, 1):
                said = predict(scheduler.scale_model_input(state, t), t)
                state = scheduler.step(said, t, state, return_dict=False, **more)[0]
                if tell is not None:
                    tell(done, state)
                if self.report.stopping:
                    break
        return state

    def _after_noise(self, seed: int, noise: Tensor) -> torch.Generator:
        """What a row's noise was drawn from, behind it: from the start it would give the same noise once more."""
        dice = torch.Generator().manual_seed(seed)
        torch.randn(noise[:1].shape, generator=dice, dtype=self.dtype)
        return dice

    def draw(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        size: tuple[int, int] | None = None,
        tell: Tell | None = None,
    ) -> Tensor:
        """Pictures, one for each prompt and its seed: the pixels that the pipeline draws with these settings."""
        predict = self.guided(self.encode_prompts(prompts), guidance)
        noise = self.noise(seeds, size)
        return self.decode(self.denoise(predict, noise, seeds=seeds, steps=steps, tell=tell))


@dataclass(frozen=True)
class Encoded:
    """Pictures as the autoencoder has them: a Gaussian of latents for each."""

    #: [n, channels, height, width]
    mean: Tensor
    std: Tensor

    def sample(self, dice: torch.Generator) -> Tensor:
        """One of each; ``dice`` is of the CPU."""
        return self.mean + self.std * torch.randn(self.mean.shape, generator=dice).to(self.mean)
