"""Train probes on a stream of states: the model reads the texts once an epoch, and nothing is kept of it."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.probing.probes import FORMAT, Batch, Course, Key, Probe, fit, packed, right
from interlace.methods.probing.spec import Labels, ProbeParams, ProbeResult
from interlace.methods.shared import capture, intervals
from interlace.methods.shared.prompts import longest
from interlace.methods.shared.sites import Sites, evaluating
from interlace.protocol.errors import InvalidRequest

_LABEL, _CONTROL = "label", "control"


def run(model: Any, params: ProbeParams, report: Report) -> ProbeResult:
    """See `ProbeParams`. Raises InvalidRequest for a site or a layer that the model has not."""
    with evaluating(model), torch.no_grad():
        trainer = _Labels if isinstance(params.target, Labels) else _Tokens
        return trainer(Sites.of(model), model.tokenizer, params, report).run()


class _Trainer:
    """What both targets share."""

    def __init__(self, sites: Sites, tokenizer: Any, params: ProbeParams, report: Report) -> None:
        self._params = params
        self._report = report
        self._sites = sites
        self._tokenizer = tokenizer
        self._layers = _layers(params.layers, sites.n_layers)
        self._places = {layer: sites.place(params.site, layer) for layer in self._layers}
        self._device = next(sites.module.parameters()).device
        self._texts = report.texts(params.texts)
        self._warnings: list[str] = []
        if len(self._texts) < 2:
            raise InvalidRequest("`params.texts` has one text; expected at least two, for one is measured on.")
        self._window = min(params.window, longest(sites.module))
        order = random.Random(report.seed)
        numbers = order.sample(range(len(self._texts)), len(self._texts))
        held = min(max(1, round(params.validation * len(numbers))), len(numbers) - 1)
        self._held, self._train = sorted(numbers[:held]), sorted(numbers[held:])

    def _ids(self, number: int) -> list[int]:
        ids: list[int] = self._tokenizer(self._texts[number])["input_ids"]
        return ids

    def _read(self, ids: Tensor) -> dict[int, Tensor]:
        """States by layer, [rows, tokens, width]."""
        self._report.count(forwards=1, tokens=ids.numel())
        with capture.captured(self._places) as states:
            capture.last_logits(self._sites.module, ids.to(self._device))
        return {layer: states[layer].float().cpu() for layer in self._layers}

    def _fit(
        self,
        rows: Sequence[Sequence[int]],
        batch_of: Callable[[list[int], Tensor], Batch],
        classes: dict[int | str, int],
    ) -> dict[Key, Probe]:
        updates = sum(1 for _ in capture.by_length(rows, self._params.batch))
        total = updates * self._params.epochs

        def stream(epoch: int, start: int) -> Iterator[Batch]:
            dice = random.Random(self._report.seed * 1_000_003 + epoch)
            order = dice.sample(range(len(rows)), len(rows))
            batches = list(capture.by_length([rows[number] for number in order], self._params.batch))
            for some, ids in dice.sample(batches, len(batches))[start:]:
                yield batch_of([order[one] for one in some], ids)

        def kept(step: int, tensors: Mapping[str, Tensor]) -> None:
            if step < total:
                self._report.checkpoint(step, tensors, {})

        def told(step: int, loss: float) -> bool:
            self._report.progress(step, total, loss=loss)
            if self._report.stopping:
                self._warnings.append(f"Cancelled after {step} of {total} updates.")
            return not self._report.stopping

        params = self._params
        return fit(
            [(layer, target) for layer in self._layers for target in classes],
            self._read(torch.tensor([list(rows[0])[:1]]))[self._layers[0]].shape[-1],
            classes,
            stream,
            epochs=params.epochs,
            updates=updates,
            lr=params.lr,
            weight_decay=params.weight_decay,
            rank=params.low_rank,
            seed=self._report.seed,
            course=Course(
                told, lambda step, tensors: self._report.checkpoint(step, tensors, {}), self._report.resumed()
            ),
        )

    def _kept(self, probes: dict[Key, Probe], **more: Any) -> str:
        config = {
            "format": FORMAT,
            "method": "probe.train@1",
            "model_type": self._sites.model_type,
            "site": self._params.site,
            "layers": self._layers,
            "low_rank": self._params.low_rank,
            **more,
        }
        return self._report.artifact("probe", packed(probes), config)

    def _result(
        self, hits: dict[Key, tuple[int, int]], majority: dict[int | str, float], artifact: str, classes: list[str]
    ) -> ProbeResult:
        rows, metrics = [], []
        for (layer, target), (good, n) in hits.items():
            if target == _CONTROL:
                continue
            value, interval = intervals.share(good, n)
            low, high = interval or (None, None)
            other = hits.get((layer, _CONTROL))
            control = None if other is None else other[0] / max(1, other[1])
            rows.append((layer, target, value, low, high, majority[target], control, n))
            name = f"accuracy_layer_{layer}" + ("" if target == _LABEL else f"_offset_{target}")
            metrics.append(Metric(name=name, value=value, unit="fraction", n=n, ci95=interval, split="heldout"))
        columns = ("layer", "target", "accuracy", "low", "high", "majority", "control", "n")
        return ProbeResult(
            metrics=tuple(metrics),
            tables=(Table(name="accuracy", columns=columns, rows=tuple(rows)),),
            artifacts=(artifact,),
            warnings=tuple(self._warnings),
            classes=classes,
        )


class _Tokens(_Trainer):
    """Probes of the tokens around."""

    def run(self) -> ProbeResult:
        assert not isinstance(self._params.target, Labels)
        self._offsets = self._params.target.offsets
        train, held = self._windows(self._train), self._windows(self._held)
        if not train:
            raise InvalidRequest("No training text has a token.")
        size = int(self._sites.module.get_input_embeddings().weight.shape[0])
        known = sorted({token for row in train for token in row}) if self._params.vocabulary == "seen" else None
        self._rows = torch.arange(size)
        if known is not None:
            self._rows = torch.full((size,), -1)
            self._rows[known] = torch.arange(len(known))
            self._warnings.append(f"The probes tell apart the {len(known)} tokens of the training texts only.")
        if self._params.low_rank is not None:
            self._warnings.append(f"The probes are of rank {self._params.low_rank}, not whole as the paper's.")
        classes: dict[int | str, int] = dict.fromkeys(self._offsets, size if known is None else len(known))
        probes = self._fit(train, self._batch, classes)
        hits = dict.fromkeys(probes, (0, 0))
        seen: dict[int | str, Counter[int]] = {offset: Counter() for offset in self._offsets}
        for numbers, ids in capture.by_length(held, self._params.batch):
            batch = self._batch(numbers, ids)
            for key, probe in probes.items():
                good, n = right(probe, batch, key)
                hits[key] = hits[key][0] + good, hits[key][1] + n
            for offset in self._offsets:
                seen[offset].update(batch.labels[offset][batch.labels[offset] >= 0].tolist())
        majority = {name: max(count.values(), default=0) / max(1, count.total()) for name, count in seen.items()}
        artifact = self._kept(probes, kind="token_offset", offsets=list(self._offsets), vocabulary=known)
        return self._result(hits, majority, artifact, [])

    def _windows(self, numbers: Sequence[int]) -> list[list[int]]:
        rows = []
        for number in numbers:
            ids = self._ids(number)
            rows += [ids[start : start + self._window] for start in range(0, len(ids), self._window)]
        return rows

    def _batch(self, _: list[int], ids: Tensor) -> Batch:
        states = {layer: state.flatten(0, 1) for layer, state in self._read(ids).items()}
        known = self._rows[ids]
        return Batch(states, {offset: shifted(known, offset).flatten() for offset in self._offsets})


class _Labels(_Trainer):
    """Probes of a text's class, each with its control."""

    def run(self) -> ProbeResult:
        target = self._params.target
        assert isinstance(target, Labels)
        if len(target.labels) != len(self._texts):
            raise InvalidRequest(f"`params.target.labels` has {len(target.labels)} for {len(self._texts)} texts.")
        names = sorted(set(target.labels))
        own = torch.tensor([names.index(label) for label in target.labels])
        shuffled = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(self._report.seed))]
        self._classes = {_LABEL: own, _CONTROL: shuffled}
        self._mean = target.position == "mean"
        rows = [self._ids(number)[: self._window] for number in range(len(self._texts))]
        if [] in rows:
            raise InvalidRequest(f"`params.texts.{rows.index([])}` has no token, and so no state to read a class in.")
        self._numbers = self._train
        probes = self._fit([rows[one] for one in self._train], self._batch, {_LABEL: len(names), _CONTROL: len(names)})
        self._numbers = self._held
        hits = dict.fromkeys(probes, (0, 0))
        for some, ids in capture.by_length([rows[one] for one in self._held], self._params.batch):
            batch = self._batch(some, ids)
            for key, probe in probes.items():
                good, n = right(probe, batch, key)
                hits[key] = hits[key][0] + good, hits[key][1] + n
        common = Counter(own[self._train].tolist()).most_common(1)[0][0]
        majority = float((own[self._held] == common).float().mean())
        kept = {key: probe for key, probe in probes.items() if key[1] == _LABEL}
        artifact = self._kept(kept, kind=_LABEL, position=target.position, classes=names)
        return self._result(hits, {_LABEL: majority}, artifact, names)

    def _batch(self, numbers: list[int], ids: Tensor) -> Batch:
        which = [self._numbers[number] for number in numbers]
        read = self._read(ids)
        states = {layer: state.mean(1) if self._mean else state[:, -1] for layer, state in read.items()}
        return Batch(states, {name: labels[which] for name, labels in self._classes.items()})


def shifted(ids: Tensor, offset: int) -> Tensor:
    """[rows, tokens]: at t what is at t + offset, -1 where that is outside."""
    found = torch.full_like(ids, -1)
    length = ids.shape[1]
    start, stop = max(0, -offset), min(length, length - offset)
    if start < stop:
        found[:, start:stop] = ids[:, start + offset : stop + offset]
    return found


def _layers(wanted: list[int] | None, count: int) -> list[int]:
    layers = list(range(count)) if wanted is None else [layer + count if layer < 0 else layer for layer in wanted]
    if strange := [layer for layer in layers if not 0 <= layer < count]:
        raise InvalidRequest(f"`params.layers` has {strange[0]}; the model's blocks are 0 to {count - 1}.")
    return sorted(set(layers))
