"""A small classifier of images, an artifact of the kind `probe`: convolutions, a mean over the picture, linear heads.

Tensors: `0.weight` [c, 3, k, k] and `0.bias`, `1.weight`..., each a convolution of stride 2 and a ReLU; then for each
head of the configuration `heads` (name -> the names of its classes) `HEAD.weight` [classes, c] and `HEAD.bias`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, linear, relu

from interlace.methods.base import Opened
from interlace.methods.shared.images import to_model
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

FORMAT = 1
KIND = "image_classifier"
_MOST_LAYERS = 16


@dataclass(frozen=True)
class Judge:
    """Use `Judge.of`."""

    convolutions: tuple[tuple[Tensor, Tensor], ...]
    heads: Mapping[str, tuple[Tensor, Tensor]]
    #: Head -> the names of its classes.
    classes: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, opened: Opened) -> "Judge":
        """Raises InvalidArtifact."""
        config, tensors = opened.config, dict(opened.tensors)
        said = config.get("heads")
        if config.get("format") != FORMAT or config.get("kind") != KIND or not isinstance(said, dict) or not said:
            raise InvalidArtifact(f"{opened.ref} is no classifier of images: `format` 1, `kind` {KIND!r} and `heads`.")
        try:
            heads = {name: (tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias")) for name in said}
            layers = [(tensors.pop(f"{n}.weight"), tensors.pop(f"{n}.bias")) for n in range(len(tensors) // 2)]
        except KeyError as error:
            raise InvalidArtifact(f"{opened.ref} lacks the tensor {error}.") from None
        if tensors or not 0 < len(layers) <= _MOST_LAYERS:
            raise InvalidArtifact(f"{opened.ref} must have 1 to {_MOST_LAYERS} convolutions and its heads, no more.")
        classes = {name: tuple(map(str, some)) for name, some in said.items()}
        width = 3
        for weight, bias in layers:
            if weight.dim() != 4 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                raise InvalidArtifact(
                    f"A convolution of {opened.ref} is {list(weight.shape)}; expected [c, {width}, k, k]."
                )
            width = weight.shape[0]
        for name, (weight, bias) in heads.items():
            if weight.shape != (len(classes[name]), width) or bias.shape != weight.shape[:1]:
                raise InvalidArtifact(f"{name} of {opened.ref} must be [{len(classes[name])}, {width}].")
        return cls(tuple(layers), heads, classes)

    def chances(self, pixels: Tensor, head: str, batch: int = 64) -> Tensor:
        """Probabilities [n, classes] for uint8 images [n, h, w, 3]. Raises InvalidRequest for a head it has not."""
        if head not in self.heads:
            raise InvalidRequest(f"The classifier has no head {head!r}; it has: {', '.join(self.heads)}.")
        with torch.no_grad():
            parts = [linear(self._seen(some), *self.heads[head]).softmax(-1) for some in pixels.split(batch)]
        return torch.cat(parts)

    def chance(self, pixels: Tensor, name: str) -> Tensor:
        """Of one class, [n]: its name, or `HEAD/NAME`. Raises InvalidRequest, which lists those that there are."""
        head, number = self._place(name)
        return self.chances(pixels, head)[:, number]

    def check(self, names: Sequence[str]) -> None:
        """Whether it can be asked of these classes: before there is a picture. Raises InvalidRequest."""
        for name in names:
            self._place(name)

    def _place(self, name: str) -> tuple[str, int]:
        places = {f"{head}/{one}": (head, n) for head, names in self.classes.items() for n, one in enumerate(names)}
        found = [place for key, place in places.items() if name in (key, key.partition("/")[2])]
        if len(found) != 1:
            what = "no class" if not found else "a class of two heads"
            raise InvalidRequest(f"{name!r} is {what} of the classifier, which has: {', '.join(places)}.")
        return found[0]

    def _seen(self, pixels: Tensor) -> Tensor:
        return _features(to_model(pixels), self.convolutions)


def _features(states: Tensor, convolutions: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    for weight, bias in convolutions:
        states = relu(conv2d(states, weight, bias, stride=2, padding=weight.shape[-1] // 2))
    return states.mean((2, 3))


def trained(
    pixels: Tensor,
    labels: Mapping[str, Tensor],
    classes: Mapping[str, Sequence[str]],
    *,
    widths: Sequence[int] = (24, 48, 64),
    steps: int = 400,
    batch: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a `probe` artifact, trained on uint8 images [n, h, w, 3] and labels [n] by head."""
    dice = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for number, (before, after) in enumerate(zip((3, *widths[:-1]), widths, strict=True)):
        tensors[f"{number}.weight"] = torch.randn(after, before, 3, 3, generator=dice) * (2 / (9 * before)) ** 0.5
        tensors[f"{number}.bias"] = torch.zeros(after)
    for head, names in classes.items():
        tensors[f"{head}.weight"] = torch.zeros(len(names), widths[-1])
        tensors[f"{head}.bias"] = torch.zeros(len(names))
    parameters = {name: nn.Parameter(one) for name, one in tensors.items()}
    convolutions = [(parameters[f"{n}.weight"], parameters[f"{n}.bias"]) for n in range(len(widths))]
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(pixels), (batch,), generator=dice)
            seen = _features(to_model(pixels[rows]), convolutions)
            losses = [
                cross_entropy(linear(seen, parameters[f"{head}.weight"], parameters[f"{head}.bias"]), truth[rows])
                for head, truth in labels.items()
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    config = {"format": FORMAT, "kind": KIND, "heads": {head: list(names) for head, names in classes.items()}}
    return {name: one.detach() for name, one in parameters.items()}, config
