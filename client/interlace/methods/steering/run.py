"""A direction, added at every token: its effect on what is asked, its harm to what is not, and random ones."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.shared import capture, intervals
from interlace.methods.shared.prompts import check_length, first_token
from interlace.methods.shared.sites import Sites, evaluating
from interlace.methods.steering.spec import SteerParams, SteerResult
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

_DIRECTION = "direction"


def run(model: Any, params: SteerParams, report: Report) -> SteerResult:
    """See `SteerParams`. Raises InvalidRequest for a site or a layer that the model has not."""
    with evaluating(model), torch.no_grad():
        return _Steering(Sites.of(model), model.tokenizer, params, report).run()


class _Steering:
    def __init__(self, sites: Sites, tokenizer: Any, params: SteerParams, report: Report) -> None:
        self._params = params
        self._report = report
        self._sites = sites
        self._tokenizer = tokenizer
        self._place = sites.place(params.site, params.layer)
        self._device = next(sites.module.parameters()).device
        self._asked = [self._ids(one.prompt) for one in params.prompts]
        self._wanted = torch.tensor([first_token(tokenizer, one.wanted) for one in params.prompts])
        self._other = torch.tensor([first_token(tokenizer, one.other) for one in params.prompts])
        self._neutral = [ids for ids in map(self._ids, report.texts(params.neutral)) if len(ids) > 1]
        if not self._neutral:
            raise InvalidRequest("No text of `params.neutral` has two tokens: there is nothing to be harmed.")
        self._warnings: list[str] = []

    def run(self) -> SteerResult:
        states_norm = self._states_norm()
        direction = self._direction()
        if self._params.normalise:
            direction = direction * states_norm / direction.norm()
        margins, nats = self._margins(None), self._nats(None)
        generator = torch.Generator().manual_seed(self._report.seed)
        directions = [(_DIRECTION, direction)]
        for number in range(self._params.controls):
            noise = torch.randn(direction.shape, generator=generator)
            directions.append((f"random {number}", noise * direction.norm() / noise.norm()))
        rows, metrics = [], []
        texts = self._written(0.0, direction)
        total, done = len(directions) * len(self._params.scales), 0
        for scale in self._params.scales:
            random: list[float] = []
            for name, vector in directions:
                effects = (self._margins(scale * vector) - margins).tolist()
                harms = (self._nats(scale * vector) - nats).tolist()
                effect, harm = intervals.mean(effects), intervals.mean(harms)
                wins = sum(one > 0 for one in effects) / len(effects)
                rows.append((scale, name, effect[0], *_both(effect[1]), wins, harm[0], *_both(harm[1])))
                if name == _DIRECTION:
                    metrics += _metrics(scale, effects, harms)
                else:
                    random.append(effect[0])
                done += 1
                self._report.progress(done, total, effect=effect[0], harm=harm[0])
            texts += self._written(scale, direction)
            value, interval = intervals.mean(random)
            metrics.append(_metric("effect_random", value, len(random), interval, scale))
            if self._report.stopping:
                self._warnings.append(f"Cancelled: scales up to {scale:g} only.")
                break
        columns = ("scale", "direction", "effect", "low", "high", "wins", "harm", "harm_low", "harm_high")
        config = {
            "method": "steer@1",
            "what": "direction [width], added to every token's state",
            "model_type": self._sites.model_type,
            "site": self._params.site,
            "layer": self._params.layer,
        }
        return SteerResult(
            metrics=tuple(metrics),
            tables=(
                Table(name="scales", columns=columns, rows=tuple(rows)),
                *([Table(name="texts", columns=("scale", "prompt", "text"), rows=tuple(texts))] if texts else []),
            ),
            artifacts=(self._report.artifact("data", {_DIRECTION: direction.contiguous()}, config, name=_DIRECTION),),
            warnings=tuple(self._warnings),
            norm=float(direction.norm()),
            states_norm=states_norm,
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        if not ids:
            raise InvalidRequest(f"The text {text[:64]!r} has no token.")
        return ids

    def _direction(self) -> Tensor:
        """[width], not scaled."""
        params = self._params
        if params.direction is not None:
            opened = self._report.open(params.direction, "data")
            found = opened.tensors.get(_DIRECTION)
            width = self._mean([self._neutral[0]]).shape[0]
            if found is None or tuple(found.shape) != (width,) or not found.is_floating_point():
                raise InvalidArtifact(f"{opened.ref} must have the tensor `direction` of {width} numbers.")
            return found.float()
        assert params.positive is not None
        assert params.negative is not None
        sides = [list(map(self._ids, self._report.texts(texts))) for texts in (params.positive, params.negative)]
        direction = self._mean(sides[0]) - self._mean(sides[1])
        if not direction.any():
            raise InvalidRequest("The means of `params.positive` and `params.negative` are the same: no direction.")
        return direction

    def _mean(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Over texts, of the state of each: [width]."""
        found = []
        for _, ids in capture.by_length(rows, self._params.batch):
            with capture.captured({"state": self._place}) as states:
                self._logits(ids, None, last=True)
            state = states["state"].float().cpu()
            found.append(state[:, -1] if self._params.position == "last" else state.mean(1))
        return torch.cat(found).mean(0)

    def _states_norm(self) -> float:
        norms = []
        for _, ids in capture.by_length(self._neutral, self._params.batch):
            with capture.captured({"state": self._place}) as states:
                self._logits(ids, None, last=True)
            norms.append(states["state"].float().norm(dim=-1).flatten().cpu())
        return float(torch.cat(norms).mean())

    def _margins(self, added: Tensor | None) -> Tensor:
        """log P(wanted) - log P(other) after each prompt: [prompts]."""
        found = torch.empty(len(self._asked), dtype=torch.float64)
        for numbers, ids in capture.by_length(self._asked, self._params.batch):
            logits = self._logits(ids, added, last=True).double().cpu()
            rows = torch.arange(len(numbers))
            found[numbers] = logits[rows, self._wanted[numbers]] - logits[rows, self._other[numbers]]
        return found

    def _written(self, scale: float, direction: Tensor) -> list[tuple[float, str, str]]:
        """What each prompt is gone on with."""
        if not self._params.write:
            return []
        ends = {getattr(self._tokenizer, "eos_token_id", None)}
        found = []
        for asked, begun in zip(self._params.prompts, self._asked, strict=True):
            ids = list(begun)
            for _ in range(self._params.write):
                added = scale * direction if scale else None
                best = int(self._logits(torch.tensor([ids]), added, last=True).argmax())
                if best in ends or self._report.stopping:
                    break
                ids.append(best)
            found.append((scale, asked.prompt, self._tokenizer.decode(ids[len(begun) :])))
        return found

    def _nats(self, added: Tensor | None) -> Tensor:
        """Of each neutral text, nats per token: [texts]."""
        found = torch.empty(len(self._neutral), dtype=torch.float64)
        for numbers, ids in capture.by_length(self._neutral, self._params.batch):
            log_probs = self._logits(ids, added, last=False)[:, :-1].double().log_softmax(-1).cpu()
            found[numbers] = -log_probs.gather(-1, ids[:, 1:, None])[..., 0].mean(-1)
        return found

    def _logits(self, ids: Tensor, added: Tensor | None, *, last: bool) -> Tensor:
        self._report.count(forwards=1, tokens=ids.numel())
        changes = []
        if added is not None:
            changes.append((self._place, lambda state: state + added.to(state.device, state.dtype)))
        with capture.altered(changes):
            if last:
                return capture.last_logits(self._sites.module, ids.to(self._device))
            check_length(self._sites.module, ids.shape[1], "A text of `params.neutral`")
            logits: Tensor = self._sites.module(input_ids=ids.to(self._device), use_cache=False).logits
            return logits


def _metrics(scale: float, effects: Sequence[float], harms: Sequence[float]) -> list[Metric]:
    effect, harm = intervals.mean(effects), intervals.mean(harms)
    wins, interval = intervals.share(sum(one > 0 for one in effects), len(effects))
    told = Metric(name="wins", value=wins, unit="fraction", n=len(effects), ci95=interval, split=f"scale {scale:g}")
    return [
        _metric("effect", effect[0], len(effects), effect[1], scale),
        told,
        _metric("harm", harm[0], len(harms), harm[1], scale),
    ]


def _metric(name: str, value: float, n: int, interval: tuple[float, float] | None, scale: float) -> Metric:
    unit = "nats/token" if name == "harm" else "nats"
    return Metric(name=name, value=value, unit=unit, n=n, ci95=interval, split=f"scale {scale:g}")


def _both(interval: tuple[float, float] | None) -> tuple[float | None, float | None]:
    return interval if interval is not None else (None, None)
