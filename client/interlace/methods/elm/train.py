"""The training loop: three losses, and where it goes on after a loss of its worker.

All chance of an update comes from the seed and its number alone, so that a run that goes on from a checkpoint is the
run that was never cut: there is no generator whose state would have to be kept.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Checkpoint, Table
from interlace.methods.elm.adapter import Adapter
from interlace.methods.elm.guidance import target
from interlace.methods.elm.language import Language, Row
from interlace.methods.elm.spec import EraseParams
from interlace.methods.elm.stopping import Watch
from interlace.protocol.errors import InvalidRequest

_COLUMNS = ("step", "erase", "retain", "retain_kl", "fluency")
Fluent = tuple[list[int], int]


@dataclass(frozen=True)
class Data:
    """What is trained on, as ids."""

    concept: Sequence[Row]
    retain: Sequence[Row]
    expert: Sequence[Row]
    novice: Sequence[Row]
    #: Ids, and how many of them are the prompt.
    fluent: Sequence[Fluent]


@dataclass
class Trainer:
    """An adapter on its way: `train` takes it from where it is to the end."""

    model: Language
    adapter: Adapter
    params: EraseParams
    data: Data
    #: Who says that it is enough, before the last update; None: nobody.
    watch: Watch | None = None
    #: Updates done.
    step: int = 0
    curve: list[list[float | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._optimizer = torch.optim.AdamW(self.adapter.parameters.values(), lr=self.params.lr)

    def train(self) -> bool:
        """Whether it came to the end, with the weights that are to be kept: False where somebody has cancelled."""
        report, params = self.model.report, self.params
        self.adapter.training(True)
        try:
            while self.step < params.steps:
                if report.stopping:
                    return False
                row = self._update()
                self.step += 1
                self.curve.append([self.step, *row])
                said = {name: one for name, one in zip(_COLUMNS[1:], row, strict=True) if one is not None}
                report.progress(self.step, params.steps, **said)
                if self._enough():
                    break
                if self.step < params.steps:
                    looks = {} if self.watch is None else {"looks": self.watch.looks}
                    report.checkpoint(self.step, self.tensors(), {"curve": self.curve, **looks})
        finally:
            self.adapter.training(False)
        if self.watch is not None:
            self.watch.restore()
        return True

    def _enough(self) -> bool:
        if self.watch is None or not self.watch.due(self.step, self.params.steps):
            return False
        self.adapter.training(False)
        found = self.watch.look(self.step)
        self.adapter.training(True)
        return found

    def table(self) -> Table:
        return Table(name="losses", columns=_COLUMNS, rows=tuple(tuple(row) for row in self.curve))

    def tensors(self) -> dict[str, Tensor]:
        """Weights, the optimizer's averages, and the fluency texts, which cost most to make again."""
        kept = {f"lora.{name}": one.detach() for name, one in self.adapter.parameters.items()}
        for name, one in self.adapter.parameters.items():
            for average in ("exp_avg", "exp_avg_sq"):
                kept[f"{average}.{name}"] = self._optimizer.state[one][average]
        best = {} if self.watch is None else self.watch.tensors()
        return {**kept, **packed(self.data.fluent), **best}

    def resume(self, found: Checkpoint) -> None:
        self.step, self.curve = found.step, [list(row) for row in found.state["curve"]]
        if self.watch is not None:
            self.watch.resume(found.state["looks"], found.tensors)
        with torch.no_grad():
            for name, one in self.adapter.parameters.items():
                one.copy_(found.tensors[f"lora.{name}"])
                averages = {kind: found.tensors[f"{kind}.{name}"].to(one.device) for kind in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[one] = {"step": torch.tensor(float(found.step)), **averages}

    def _update(self) -> list[float | None]:
        """One update. Its mean losses: erase, retain, retain_kl, fluency; None for what has no weight."""
        params, sums = self.params, dict.fromkeys(_COLUMNS[1:], 0.0)
        for part in range(params.grad_accum):
            number = self.step * params.grad_accum + part
            dice = random.Random(f"{self.model.report.seed}:{number}")
            torch.manual_seed(dice.getrandbits(62))  # for dropout
            at = range(number * params.batch, (number + 1) * params.batch)
            makers = (self._erase, self._retain, self._fluency)
            for name, weight, make in zip(("erase", "retain", "fluency"), params.lambdas, makers, strict=True):
                if not weight:
                    continue
                loss, divergence = make(at, dice)
                if not math.isfinite(loss.item()):
                    raise InvalidRequest(
                        f"The {name} loss is no longer a number after {self.step} updates. A smaller `lr` than "
                        f"{params.lr:g}, or a smaller weight in `lambdas`, may help."
                    )
                (weight * loss / params.grad_accum).backward()
                sums[name] += loss.item() / params.grad_accum
                sums["retain_kl"] += divergence / params.grad_accum
        self._optimizer.step()
        self._optimizer.zero_grad()
        weights = dict(zip(("erase", "retain", "fluency"), params.lambdas, strict=True)) | {
            "retain_kl": params.lambdas[1]
        }
        return [sums[name] if weights[name] else None for name in _COLUMNS[1:]]

    def _frozen(self, rows: Sequence[Row]) -> Tensor:
        """Logits of the base model, as it answers: no gradient, no dropout."""
        self.adapter.training(False)
        with self.adapter.disabled():
            logits = self.model.logits(rows)
        self.adapter.training(True)
        return logits

    def _erase(self, at: range, dice: random.Random) -> tuple[Tensor, float]:
        """CE(P_er, P*) of texts on the concept, nats a token; T^2 times that of both at a `distil_temperature` T."""
        rows = [self.data.concept[i % len(self.data.concept)] for i in at]
        prefixes = [(dice.choice(self.data.expert), dice.choice(self.data.novice)) for _ in rows]
        base = self._frozen(rows)
        expert = self._frozen([[*prefix, *row] for (prefix, _), row in zip(prefixes, rows, strict=True)])
        novice = self._frozen([[*prefix, *row] for (_, prefix), row in zip(prefixes, rows, strict=True)])
        adapted, warmth = self.model.logits(rows, backward=True), self.params.distil_temperature
        losses = []
        for i, row in enumerate(rows):
            n, (first, second) = len(row), (len(prefix) for prefix in prefixes[i])
            behind = expert[i, first : first + n], novice[i, second : second + n]
            wanted = target(base[i, :n], *behind, self.params).float()
            losses.append(_cross_entropy(wanted, (adapted[i, :n].float() / warmth).log_softmax(-1)))
        return torch.cat(losses).mean() * warmth**2, 0.0

    def _retain(self, at: range, dice: random.Random) -> tuple[Tensor, float]:
        """CE(P, P*) of texts that are to stay, nats a token; and the divergence KL(P, P*), which is 0 at the start."""
        rows = [self.data.retain[i % len(self.data.retain)] for i in at]
        base, adapted = self._frozen(rows), self.model.logits(rows, backward=True)
        losses, divergences = [], []
        for i, row in enumerate(rows):
            was, now = (logits[i, : len(row)].float().log_softmax(-1) for logits in (base, adapted))
            divergences.append((was.exp() * (was - now.detach())).sum(-1))
            if self.params.retain_target == "argmax":
                losses.append(-now.gather(-1, was.argmax(-1, keepdim=True))[:, 0])
            else:
                losses.append(_cross_entropy(was.exp(), now))
        return torch.cat(losses).mean(), torch.cat(divergences).mean().item()

    def _fluency(self, at: range, dice: random.Random) -> tuple[Tensor, float]:
        """Next-token cross-entropy of what the guided base model wrote, nats a token."""
        picked = [self.data.fluent[i % len(self.data.fluent)] for i in at]
        logits = self.model.logits([ids for ids, _ in picked], backward=True)
        losses = []
        for i, (ids, prompt) in enumerate(picked):
            logs = logits[i, prompt - 1 : len(ids) - 1].float().log_softmax(-1)
            tokens = torch.tensor(ids[prompt:], device=logs.device)
            losses.append(-logs.gather(-1, tokens[:, None])[:, 0])
        return torch.cat(losses).mean(), 0.0


def _cross_entropy(wanted: Tensor, logs: Tensor) -> Tensor:
    """Of each token, in nats."""
    return -(wanted * logs).sum(-1)


def packed(fluent: Sequence[Fluent]) -> dict[str, Tensor]:
    """Fluency texts as tensors."""
    if not fluent:
        return {}
    ids = torch.tensor([token for row, _ in fluent for token in row])
    return {"fluent.ids": ids, "fluent.sizes": torch.tensor([[len(row), prompt] for row, prompt in fluent])}


def unpacked(tensors: Mapping[str, Any]) -> list[Fluent]:
    """Fluency texts out of a checkpoint."""
    if "fluent.ids" not in tensors:
        return []
    sizes = tensors["fluent.sizes"].tolist()
    rows = tensors["fluent.ids"].split([n for n, _ in sizes])
    return [(row.tolist(), prompt) for row, (_, prompt) in zip(rows, sizes, strict=True)]
