"""Weights that are moved to forget an image, the Fisher information that holds them, and losses on fixed noise."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interlace.methods.attribution.spec import AttributeParams
from interlace.methods.shared.denoising.diffusion import Pipeline, Prompts
from interlace.protocol.errors import InvalidRequest

#: Of module paths; a LoRA around a layer puts it below `base_layer`.
_SUBSETS = {
    "cross_kv": r".*\.attn2\.(to_k|to_v)(\.base_layer)?",
    "cross": r".*\.attn2\.(to_q|to_k|to_v|to_out\.0)(\.base_layer)?",
    "attention": r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)(\.base_layer)?",
}


@dataclass(frozen=True)
class Pictures:
    """Images as the denoiser meets them."""

    #: [n, ...]
    latents: Tensor
    prompts: Prompts

    def __len__(self) -> int:
        return len(self.latents)


class Weights:
    """The linear layers of a subset. Use `moved`."""

    def __init__(self, pipeline: Pipeline, params: AttributeParams) -> None:
        self._pipeline, self._params = pipeline, params
        wanted = re.compile(_SUBSETS[params.subset])
        modules = pipeline.unet.named_modules()
        self.layers = {p: one for p, one in modules if isinstance(one, nn.Linear) and wanted.fullmatch(p)}
        if not self.layers:
            raise InvalidRequest(f"The denoiser has no attention that `subset` {params.subset!r} names.")
        self._former = {path: one.weight.detach().clone() for path, one in self.layers.items()}

    def restore(self) -> None:
        """As they were, to the bit."""
        with torch.no_grad():
            for path, layer in self.layers.items():
                layer.weight.copy_(self._former[path])

    def change(self) -> float:
        """How far they are from where they were, as a share of their norm."""
        moved = sum(float((one.weight.detach() - self._former[p]).square().sum()) for p, one in self.layers.items())
        return math.sqrt(moved / sum(float(one.square().sum()) for one in self._former.values()))

    def fisher(self, pictures: Pictures) -> dict[str, Tensor]:
        """The mean square of each weight's gradient on one image and one noise: diag F, in 32 bits."""
        found = {path: torch.zeros_like(one, dtype=torch.float32) for path, one in self._former.items()}
        dice = torch.Generator().manual_seed(self._pipeline.report.seed)
        n = len(pictures) * self._params.fisher_draws
        with self._squares(found):
            for rows in torch.arange(n).split(self._params.batch):
                (self._loss(pictures, rows % len(pictures), dice) * len(rows)).backward()
                self._forget_gradients()
        return {path: one / n for path, one in found.items()}

    def step(self, pictures: Pictures, which: int, fisher: dict[str, Tensor], n: int, dice: torch.Generator) -> None:
        """theta <- theta + (alpha / N) F^-1 grad L of one picture (Eq. 5)."""
        draws = self._params.query_draws
        for rows in torch.arange(draws).split(self._params.batch):
            own = torch.full((len(rows),), which)
            (self._loss(pictures, own, dice) * (len(rows) / draws)).backward()
        floor = self._params.damping * torch.cat([one.flatten() for one in fisher.values()]).mean()
        with torch.no_grad():
            for path, layer in self.layers.items():
                assert layer.weight.grad is not None
                change = layer.weight.grad.float() / (fisher[path] + floor).clamp_min(1e-30)
                layer.weight.add_((self._params.alpha / n * change).to(layer.weight))
        self._forget_gradients()

    def losses(self, pictures: Pictures) -> Tensor:
        """L of each picture, [n]: the mean over evenly spaced t, each with its noise, the same at every call."""
        pipeline, times = self._pipeline, self._params.times
        total = torch.zeros(len(pictures))
        for number in range(times):
            dice = torch.Generator().manual_seed(pipeline.report.seed * 7919 + number)
            noise = torch.randn(pictures.latents.shape, generator=dice)
            at = int((number + 0.5) / times * pipeline.timesteps)
            for rows in torch.arange(len(pictures)).split(self._params.batch):
                latents, t = pictures.latents[rows], torch.full((len(rows),), at)
                drawn = noise[rows].to(latents)
                said = pipeline.predict(pipeline.noised(latents, drawn, t), t, pictures.prompts[rows])
                error = (said - pipeline.target(latents, drawn, t)).float().square().mean((1, 2, 3))
                total[rows] += error.cpu() / times
        return total

    def _loss(self, pictures: Pictures, rows: Tensor, dice: torch.Generator) -> Tensor:
        """The mean of some pictures' losses, at noise and t as they come."""
        pipeline, latents = self._pipeline, pictures.latents[rows]
        t = torch.randint(pipeline.timesteps, (len(rows),), generator=dice)
        noise = torch.randn(latents.shape, generator=dice).to(latents)
        said = pipeline.predict(pipeline.noised(latents, noise, t), t, pictures.prompts[rows], backward=True)
        return (said - pipeline.target(latents, noise, t)).float().square().mean()

    @contextmanager
    def _squares(self, into: dict[str, Tensor]) -> Iterator[None]:
        """Add each row's squared gradient of each weight, as losses that are sums over rows go backward.

        A linear layer's gradient for one row is the sum over its positions of what came back times what went in.
        """

        def watch(path: str) -> object:
            def seen(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
                states = given[0].detach()

                def back(gradient: Tensor) -> None:
                    each = torch.einsum("nto,nti->noi", gradient.float(), states.float())
                    into[path] += each.square().sum(0)

                if output.requires_grad:
                    output.register_hook(back)

            return seen

        handles = [layer.register_forward_hook(watch(path)) for path, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forget_gradients(self) -> None:
        for layer in self.layers.values():
            layer.weight.grad = None


@contextmanager
def moved(pipeline: Pipeline, params: AttributeParams) -> Iterator[Weights]:
    """Weights that may be moved, and are as they were at the end. Raises InvalidRequest where there are none."""
    weights = Weights(pipeline, params)
    for layer in weights.layers.values():
        layer.weight.requires_grad_(True)
    try:
        yield weights
    finally:
        weights.restore()
        for layer in weights.layers.values():
            layer.weight.requires_grad_(False)
            layer.weight.grad = None
