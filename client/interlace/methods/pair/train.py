"""The training loop: content and style LoRA from one pair of pictures, each with an optimizer of its own.

All chance of an update comes from the seed and its number alone, so that a run that goes on from a checkpoint is the
run that was never cut.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from interlace.methods.base import Checkpoint, Table
from interlace.methods.pair.spec import PairParams
from interlace.methods.shared.denoising.diffusion import Encoded, Pipeline
from interlace.methods.shared.denoising.lora import Layers
from interlace.protocol.errors import InvalidRequest

CONTENT, STYLE = "content", "style"
_AVERAGES = ("exp_avg", "exp_avg_sq")


@dataclass
class Trainer:
    """Both adapters on their way: `train` takes them from where they are to the end."""

    pipeline: Pipeline
    layers: Layers
    params: PairParams
    #: The content picture, then the styled one.
    pair: Encoded
    #: Called after an update, with how many are done.
    after: Callable[[int], None] = lambda step: None
    #: Updates done.
    step: int = 0
    curve: list[list[float | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._content = self.pipeline.encode_prompts([self.params.content]).repeated(self.params.batch)
        self._styled = self.pipeline.encode_prompts([self.params.styled]).repeated(self.params.batch)
        self.names = (CONTENT, STYLE) if self.params.joint else (STYLE,)
        how = {"lr": self.params.lr, "weight_decay": self.params.weight_decay}
        # One for each: with one for both, a style's update would come after either loss.
        self._optimizers = {
            name: torch.optim.AdamW(self.layers.parameters(name).values(), **how) for name in self.names
        }

    @property
    def of(self) -> int:
        return self.params.first_steps + self.params.joint_steps

    def train(self) -> bool:
        """Whether it came to the end: False where somebody has cancelled."""
        report = self.pipeline.report
        while self.step < self.of:
            if report.stopping:
                return False
            content, style = self._update()
            self.step += 1
            self.curve.append([self.step, content, style])
            said = {name: one for name, one in ((CONTENT, content), (STYLE, style)) if one is not None}
            report.progress(self.step, self.of, **said)
            self.after(self.step)
            if self.step < self.of:
                report.checkpoint(self.step, self.tensors(), {"curve": self.curve})
        return True

    def _update(self) -> tuple[float | None, float | None]:
        """One update. The mean losses of content and style; None for what was not trained."""
        params = self.params
        sums: dict[str, list[float]] = {CONTENT: [], STYLE: []}
        joint = self.step >= params.first_steps
        for part in range(params.grad_accum):
            dice = random.Random(f"{self.pipeline.report.seed}:{self.step * params.grad_accum + part}")
            generator = torch.Generator().manual_seed(dice.getrandbits(62))
            latents = self.pair.sample(generator)
            shape = (params.batch, *latents.shape[1:])
            noise = torch.randn(shape, generator=generator).to(latents)  # the same for both pictures, as t is
            t = torch.randint(0, self.pipeline.timesteps, (params.batch,), generator=generator)
            if params.joint:
                sums[CONTENT].append(self._backward(CONTENT, latents[0], noise, t))
            if joint:
                sums[STYLE].append(self._backward(STYLE, latents[1], noise, t))
        for name in self.names:
            if sums[name]:
                self._optimizers[name].step()
                self._optimizers[name].zero_grad()
        content, style = (sum(values) / len(values) if values else None for values in sums.values())
        return content, style

    def _backward(self, name: str, latents: Tensor, noise: Tensor, t: Tensor) -> float:
        """Eq. 4, or Eq. 6, in which the content LoRA is on and gets no gradient. w_t is 1."""
        on = dict.fromkeys(self.names if name == STYLE else (CONTENT,), 1.0)
        self.layers.use(on, train=(name,))
        prompts = self._styled if name == STYLE else self._content
        rows = latents.expand_as(noise)
        said = self.pipeline.predict(self.pipeline.noised(rows, noise, t), t, prompts, backward=True)
        loss = functional.mse_loss(said.float(), self.pipeline.target(rows, noise, t).float())
        if not math.isfinite(loss.item()):
            raise InvalidRequest(
                f"The {name} loss is no longer a number after {self.step} updates; a smaller `lr` than "
                f"{self.params.lr:g} may help."
            )
        (loss / self.params.grad_accum).backward()
        return float(loss.item())

    def table(self) -> Table:
        return Table(name="losses", columns=("step", CONTENT, STYLE), rows=tuple(tuple(row) for row in self.curve))

    def tensors(self) -> dict[str, Tensor]:
        """Weights, and the optimizers' averages."""
        kept = {}
        for name in self.names:
            state = self._optimizers[name].state
            for path, one in self.layers.parameters(name).items():
                kept[f"lora.{name}.{path}"] = one.detach()
                if one in state:
                    kept |= {f"{average}.{name}.{path}": state[one][average] for average in _AVERAGES}
        return kept

    def resume(self, found: Checkpoint) -> None:
        self.step, self.curve = found.step, [list(row) for row in found.state["curve"]]
        for name in self.names:
            done = self.step - (0 if name == CONTENT else self.params.first_steps)
            for path, one in self.layers.parameters(name).items():
                with torch.no_grad():
                    one.copy_(found.tensors[f"lora.{name}.{path}"])
                if done > 0:
                    averages = {kind: found.tensors[f"{kind}.{name}.{path}"].to(one.device) for kind in _AVERAGES}
                    self._optimizers[name].state[one] = {"step": torch.tensor(float(done)), **averages}
