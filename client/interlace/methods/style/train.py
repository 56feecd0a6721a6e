"""The training of `customize.style`: two losses on one batch, the second against the bare model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, mse_loss

from interlace.methods.base import Report
from interlace.methods.shared.denoising.diffusion import Pipeline, Prompts
from interlace.methods.shared.denoising.lora import Layers
from interlace.methods.shared.images import Images
from interlace.methods.style.spec import HELD, StyleParams

NAME = "style"


def styled(caption: str, suffix: str) -> str:
    """The style's prompt of a plain caption."""
    return caption.rstrip().rstrip(".") + suffix


@dataclass(frozen=True)
class Examples:
    """What is trained on, encoded."""

    #: uint8 [n, side, side, 3]
    pixels: Tensor
    #: [n, ...]
    latents: Tensor
    styled: Prompts
    #: Of the second term.
    plain: Prompts
    #: Whether row i of `plain` is of image i.
    paired: bool


def examples(pipeline: Pipeline, images: Images, params: StyleParams) -> Examples:
    """Raises InvalidRequest for a resolution that does not go."""
    images = images.resized(params.resolution or int(pipeline.unet.config.sample_size) * pipeline.pixels)
    plain: Sequence[str] = params.preserve_prompts or images.captions
    return Examples(
        images.pixels,
        torch.cat([pipeline.encode_images(some).mean for some in images.pixels.split(params.batch)]),
        pipeline.encode_prompts([styled(one, params.suffix) for one in images.captions]),
        pipeline.encode_prompts(plain),
        not params.preserve_prompts,
    )


class Trainer:
    """One adapter's training. Seeded: the same draws for the same seed, whatever lambda is."""

    def __init__(self, pipeline: Pipeline, layers: Layers, data: Examples, params: StyleParams, seed: int) -> None:
        self._pipeline, self._layers, self._data, self._params = pipeline, layers, data, params
        self._dice = torch.Generator().manual_seed(seed)
        layers.use({NAME: 1.0}, train=(NAME,))
        self.parameters = layers.parameters(NAME)
        self._optimizer = torch.optim.AdamW(self.parameters.values(), lr=params.lr, weight_decay=params.weight_decay)
        self._done = 0

    def step(self) -> tuple[float, float]:
        """One update; the two losses, the second without its weight."""
        rows = torch.randint(len(self._data.latents), (self._params.batch,), generator=self._dice)
        latents = self._seen(rows)
        noise = torch.randn(latents.shape, generator=self._dice).to(latents)
        style = self._style_loss(latents, noise, rows, self._grid_t(len(rows)))
        t = torch.randint(self._pipeline.timesteps, (len(rows),), generator=self._dice)
        other = torch.randint(len(self._data.plain), (len(rows),), generator=self._dice)
        self._optimizer.zero_grad()
        style.backward()
        kept = 0.0
        if self._params.preserve_lambda:
            preserve = self._preserve_loss(latents, noise, rows if self._data.paired else other, t)
            (self._params.preserve_lambda * preserve).backward()
            kept = float(preserve.detach())
        self._optimizer.step()
        self._done += 1
        return float(style.detach()), kept

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """For a checkpoint."""
        tensors = {f"w.{name}": one.detach() for name, one in self.parameters.items()}
        for number, one in enumerate(self._optimizer.state.values()):
            tensors |= {f"o.{number}.{name}": value for name, value in one.items()}
        return {**tensors, "dice": self._dice.get_state()}, {"done": self._done}

    def resume(self, tensors: "dict[str, Tensor]", done: int) -> None:
        """Go on where `state` was taken."""
        with torch.no_grad():
            for name, one in self.parameters.items():
                one.copy_(tensors[f"w.{name}"])
        for number, one in enumerate(self.parameters.values()):
            kept = {name: tensors[f"o.{number}.{name}"] for name in ("step", "exp_avg", "exp_avg_sq")}
            self._optimizer.state[one] = {name: value.clone() for name, value in kept.items()}
        self._dice.set_state(tensors["dice"])
        self._done = done

    def held(self, report: Report) -> tuple[float, float]:
        """Both losses on noise that no step has seen, the same each time."""
        dice = torch.Generator().manual_seed(report.seed + 1)
        data, n = self._data, len(self._data.latents)
        rows = torch.arange(HELD) % n
        noise = torch.randn((HELD, *data.latents.shape[1:]), generator=dice).to(data.latents)
        t = ((torch.arange(HELD) + 0.5) / HELD * self._pipeline.timesteps).long()
        style, preserve = [], []
        with torch.no_grad():
            for some in torch.arange(HELD).split(4 * self._params.batch):  # forward alone holds far less
                own = rows[some]
                latents = data.latents[own]
                style.append(self._style_loss(latents, noise[some], own, t[some], train=False) * len(some))
                plain = own if data.paired else own % len(data.plain)
                preserve.append(self._preserve_loss(latents, noise[some], plain, t[some], train=False) * len(some))
        return float(sum(style)) / HELD, float(sum(preserve)) / HELD

    def _grid_t(self, n: int) -> Tensor:
        """One t for the whole batch, [n]."""
        at = int(torch.randint(1, self._params.t_grid - 1, (1,), generator=self._dice))
        return torch.full((n,), at * self._pipeline.timesteps // self._params.t_grid)

    def _seen(self, rows: Tensor) -> Tensor:
        """Latents of a batch, each image cut at random."""
        if self._params.crop == 1:
            return self._data.latents[rows]
        side = self._data.pixels.shape[1]
        cut = []
        for one in self._data.pixels[rows]:
            share = self._params.crop + (1 - self._params.crop) * float(torch.rand(1, generator=self._dice))
            length = max(1, round(side * share**0.5))
            top, left = (int(torch.randint(side - length + 1, (1,), generator=self._dice)) for _ in range(2))
            part = one[top : top + length, left : left + length].permute(2, 0, 1)[None].float()
            whole = interpolate(part, (side, side), mode="bilinear", antialias=True)
            cut.append(whole[0].round().to(torch.uint8).permute(1, 2, 0))
        return self._pipeline.encode_images(torch.stack(cut)).mean

    def _style_loss(self, latents: Tensor, noise: Tensor, rows: Tensor, t: Tensor, *, train: bool = True) -> Tensor:
        pipeline = self._pipeline
        said = pipeline.predict(pipeline.noised(latents, noise, t), t, self._data.styled[rows], backward=train)
        return mse_loss(said.float(), pipeline.target(latents, noise, t).float())

    def _preserve_loss(self, latents: Tensor, noise: Tensor, rows: Tensor, t: Tensor, *, train: bool = True) -> Tensor:
        pipeline, plain = self._pipeline, self._data.plain[rows]
        noisy = pipeline.noised(latents, noise, t)
        self._layers.use({})
        bare = pipeline.predict(noisy, t, plain)
        self._layers.use({NAME: 1.0}, train=(NAME,))
        said = pipeline.predict(noisy, t, plain, backward=train)
        return mse_loss(said.float(), bare.float())
