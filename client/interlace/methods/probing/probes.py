"""The probes themselves: maps without a bias, trained together, kept together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from interlace.methods.base import Checkpoint, Opened
from interlace.protocol.errors import InvalidArtifact

FORMAT = 1
_WARM_UP = 0.1  # of the updates
#: (layer, target): a target is an offset, or a name.
Key = tuple[int, int | str]


@dataclass(frozen=True)
class Batch:
    """States, and what they should tell."""

    #: By layer: [n, width].
    states: Mapping[int, Tensor]
    #: By target: [n], the class; -1 where there is none.
    labels: Mapping[int | str, Tensor]


class Probe(nn.Module):  # type: ignore[misc]
    """[n, width] -> [n, classes], without a bias, of full or of low rank."""

    def __init__(self, width: int, classes: int, rank: int | None, generator: torch.Generator) -> None:
        super().__init__()
        self.A: nn.Parameter | None = None
        if rank is None:
            self.B = nn.Parameter(torch.zeros(classes, width))
        else:
            self.A = nn.Parameter(torch.randn(rank, width, generator=generator) / width**0.5)
            self.B = nn.Parameter(torch.zeros(classes, rank))

    def forward(self, states: Tensor) -> Tensor:
        return functional.linear(states if self.A is None else functional.linear(states, self.A), self.B)


@dataclass(frozen=True)
class Course:
    """What is said and kept on the way, and where it begins."""

    #: Hears each step's mean loss, and says whether to go on.
    told: Callable[[int, float], bool] = lambda step, loss: True
    #: Is given each step's tensors.
    kept: Callable[[int, Mapping[str, Tensor]], None] = lambda step, tensors: None
    begun: Checkpoint | None = None


_ALONE = Course()


def fit(
    keys: Sequence[Key],
    width: int,
    classes: Mapping[int | str, int],
    stream: Callable[[int, int], Iterator[Batch]],
    *,
    epochs: int,
    updates: int,
    lr: float,
    weight_decay: float,
    rank: int | None,
    seed: int,
    course: Course = _ALONE,
) -> dict[Key, Probe]:
    """A probe for each key; ``stream`` gives an epoch's batches, ``updates`` of them, from a number on. Cross-entropy,
    AdamW; each probe's gradient is its own, so that they do not meet."""
    generator = torch.Generator().manual_seed(seed)
    probes = {key: Probe(width, classes[key[1]], rank, generator) for key in keys}
    weights = [weight for probe in probes.values() for weight in probe.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
    total = epochs * updates
    warm = max(1, int(_WARM_UP * total))
    step = 0 if course.begun is None else course.begun.step
    if course.begun is not None:
        _restore(optimiser, weights, course.begun)
    for epoch in range(step // updates, epochs):
        for batch in stream(epoch, step - epoch * updates):
            for group in optimiser.param_groups:
                group["lr"] = lr * min((step + 1) / warm, max(0.0, (total - step) / max(1, total - warm)))
            optimiser.zero_grad()
            losses = [_learn(probe, batch, key) for key, probe in probes.items()]
            optimiser.step()
            step += 1
            if not course.told(step, sum(losses) / len(losses)):
                return probes
            course.kept(step, _state(optimiser, weights))
    return probes


_AVERAGES = ("exp_avg", "exp_avg_sq")


def _state(optimiser: torch.optim.Optimizer, weights: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Weights and the optimiser's averages, by their numbers; a weight that has had no gradient has none."""
    found = {}
    for number, weight in enumerate(weights):
        found[f"weight.{number}"] = weight.detach()
        own = optimiser.state.get(weight, {})
        found |= {f"{name}.{number}": own[name] for name in ("step", *_AVERAGES) if name in own}
    return found


def _restore(optimiser: torch.optim.Optimizer, weights: Sequence[nn.Parameter], begun: Checkpoint) -> None:
    for number, weight in enumerate(weights):
        with torch.no_grad():
            weight.copy_(begun.tensors[f"weight.{number}"])
        own = {name: begun.tensors.get(f"{name}.{number}") for name in ("step", *_AVERAGES)}
        if own["step"] is not None:
            optimiser.state[weight] = {name: one.clone() for name, one in own.items() if one is not None}


def _learn(probe: Probe, batch: Batch, key: Key) -> float:
    labels = batch.labels[key[1]]
    some = labels >= 0
    if not some.any():
        return 0.0
    with torch.enable_grad():
        loss = functional.cross_entropy(probe(batch.states[key[0]][some]), labels[some])
        loss.backward()
    return float(loss.detach())


def right(probe: Probe, batch: Batch, key: Key) -> tuple[int, int]:
    """How many of a batch it tells rightly, of how many."""
    labels = batch.labels[key[1]]
    some = labels >= 0
    with torch.no_grad():
        told = probe(batch.states[key[0]][some]).argmax(-1)
    return int((told == labels[some]).sum()), int(some.sum())


def packed(probes: Mapping[Key, Probe]) -> dict[str, Tensor]:
    """Tensors by name, as an artifact has them."""
    tensors = {}
    for (layer, target), probe in probes.items():
        name = f"{layer}.{target}"
        if probe.A is None:
            tensors[name] = probe.B.detach().contiguous().clone()
        else:
            tensors |= {f"{name}.A": probe.A.detach().contiguous(), f"{name}.B": probe.B.detach().contiguous()}
    return tensors


@dataclass(frozen=True)
class Probes:
    """Token probes out of an artifact."""

    opened: Opened
    #: Of the tokenizer's ids, the probe's row; -1 for one that it does not know.
    rows: Tensor

    @classmethod
    def of(cls, opened: Opened, model_type: str, vocabulary: int) -> "Probes":
        """Raises InvalidArtifact for what is no artifact of token probes of this kind of model."""
        config: Mapping[str, Any] = opened.config
        if config.get("format") != FORMAT or config.get("kind") != "token_offset":
            raise InvalidArtifact(f"{opened.ref} holds no token probes of `probe.train`.")
        if config.get("model_type") != model_type:
            raise InvalidArtifact(
                f"{opened.ref} reads a {str(config.get('model_type'))[:64]}; this model is a {model_type}."
            )
        known = config.get("vocabulary")
        rows = torch.arange(vocabulary)
        if isinstance(known, list):
            if not all(type(one) is int and 0 <= one < vocabulary for one in known):
                raise InvalidArtifact(f"`vocabulary` of {opened.ref} has what is no token of this model.")
            rows = torch.full((vocabulary,), -1)
            rows[known] = torch.arange(len(known))
        return cls(opened, rows)

    @property
    def site(self) -> str:
        return str(self.opened.config.get("site"))

    def log_probs(self, layer: int, offset: int, states: Tensor) -> Tensor:
        """[n, classes] of [n, width]. Raises InvalidArtifact where the probe is not there, or of another width."""
        name, tensors = f"{layer}.{offset}", self.opened.tensors
        names = [name] if name in tensors else [f"{name}.A", f"{name}.B"]
        if any(one not in tensors for one in names):
            raise InvalidArtifact(f"{self.opened.ref} has no probe of layer {layer} for offset {offset}.")
        found = states.float().cpu()
        for one in names:
            if tensors[one].dim() != 2 or tensors[one].shape[1] != found.shape[-1]:
                raise InvalidArtifact(f"{one} of {self.opened.ref} does not read {found.shape[-1]} numbers.")
            found = functional.linear(found, tensors[one].float())
        if found.shape[-1] != int(self.rows.max()) + 1:
            raise InvalidArtifact(f"{name} of {self.opened.ref} has {found.shape[-1]} rows; expected one a token.")
        return found.log_softmax(-1)
