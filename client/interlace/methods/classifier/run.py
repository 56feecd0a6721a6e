"""`classifier.shift`: train, attribute, show; then, with the features that somebody marked: ablate, judge, retrain."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.classifier.head import Head, HeadMeasure, Judged, Pooled, trained
from interlace.methods.classifier.spec import Candidate, Marked, ShiftParams, ShiftResult
from interlace.methods.shared.capture import by_length, state_at
from interlace.methods.shared.circuits.attribution import Attributor, Batch
from interlace.methods.shared.circuits.examples import saes_of
from interlace.methods.shared.circuits.splice import Intervention, Splice, ablated
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.features.contexts import Watched, described
from interlace.methods.shared.sites import evaluating
from interlace.protocol.errors import InvalidRequest

_FORMAT = 1


def run(model: Any, params: ShiftParams, report: Report) -> ShiftResult:
    """One of both calls. Raises InvalidRequest for labels that do not fit texts, or features that there are not."""
    shift = _Shift.of(model, params, report)
    with evaluating(shift.splice.sites.module):
        return shift.first() if params.ablate is None else shift.second(params.ablate)


@dataclass
class _Shift:
    model: Any
    params: ShiftParams
    report: Report
    splice: Splice
    pooled: Pooled
    classes: list[str]
    corpora: dict[str, Corpus]
    #: By the same names: [texts], classes; `spurious` is of the balanced texts.
    labels: dict[str, Tensor]
    warnings: list[str] = field(default_factory=list)
    _tokens: int = 0

    @classmethod
    def of(cls, model: Any, params: ShiftParams, report: Report) -> "_Shift":
        saes = saes_of(params.saes)
        splice = Splice.open(model, [(report.open(one.sae, "sae"), one.site, one.layer) for one in saes])
        pooled = Pooled(splice.sites, splice.sites.place(params.site, params.layer), params.skip_first, report)
        _check_order(splice, pooled)
        classes = sorted(set(params.labels))
        named = [("ambiguous", params.ambiguous, params.labels), ("oracle", params.oracle, params.oracle_labels)]
        named.append(("balanced", params.balanced, params.intended))
        corpora, labels = {}, {}
        for name, texts, own in named:
            if texts is not None:
                corpora[name] = Corpus.of(report, model, texts, params.context)
                labels[name] = _numbers(name, own, classes, len(corpora[name]))
        if params.balanced is not None:
            labels["spurious"] = _numbers("spurious", params.spurious, classes, len(corpora["balanced"]))
        return cls(model, params, report, splice, pooled, classes, corpora, labels)

    def first(self) -> ShiftResult:
        """Train, attribute, show."""
        states = self._states("ambiguous")
        head = self._head(states)
        rows = [("original", 0, self._judged(head))] if "balanced" in self.corpora else []
        if "oracle" in self.corpora and "balanced" in self.corpora:
            rows.append(("oracle", 0, self._judged(self._trained(self._states("oracle"), self.labels["oracle"]))))
        effects, errors = self._effects(head)
        best = _largest(effects, self.params.candidates)
        shown = self._shown(best)
        tables = [self._accuracy(rows)] if rows else []
        tables.append(
            Table(
                name="candidates",
                columns=("place", "feature", "effect", "fires", "max"),
                rows=tuple((one.place, one.feature, one.effect, one.shown.fires, one.shown.most) for one in shown),
            )
        )
        tables.append(Table(name="errors", columns=("place", "effect"), rows=tuple(errors.items())))
        return self._result(head, rows, tuple(tables), candidates=tuple(shown))

    def second(self, marked: Sequence[Marked]) -> ShiftResult:
        """Ablate, judge, retrain; the same with random features."""
        named = self._named(marked)
        head = self._head(None)
        rows = [("original", 0, self._judged(head))]
        live = self._live()
        dice = torch.Generator().manual_seed(self.report.seed)
        ways = [("ablated", 0, named)]
        ways += [("random", number, _random(named, live, dice)) for number in range(self.params.controls)]
        for number, (name, which, some) in enumerate(ways):
            if self.report.stopping:
                self.warnings.append(f"Cancelled after {number} of {len(ways)} sets of features.")
                break
            if name == "random" and (lacking := sum(map(len, named.values())) - sum(map(len, some.values()))):
                self.warnings.append(f"Control {which} has {lacking} features less: no more are on in the examples.")
            sets = {place: ablated(one) for place, one in some.items() if one}
            states = self._states("balanced", sets)
            rows.append((name, which, self._judged(head, states)))
            again = self._trained(self._states("ambiguous", sets), self.labels["ambiguous"])
            rows.append((f"{name}, retrained", which, self._judged(again, states)))
            self.report.progress(number + 1, len(ways))
        if "oracle" in self.corpora:
            rows.append(("oracle", 0, self._judged(self._trained(self._states("oracle"), self.labels["oracle"]))))
        kept = tuple(Marked(place=place, feature=one) for place, some in named.items() for one in some)
        return self._result(head, rows, (self._accuracy(rows),), ablated=kept)

    def _states(self, name: str, sets: Mapping[str, Intervention] | None = None) -> Tensor:
        """What a head reads of texts, with some features ablated or none."""
        self._tokens += sum(len(one) for one in self.corpora[name].sequences)
        with self.splice.intervened(sets) if sets else nullcontext():
            return self.pooled.of(self.corpora[name], self.params.model_batch)

    def _trained(self, states: Tensor, labels: Tensor) -> Head:
        params = self.params
        return trained(
            states,
            labels,
            len(self.classes),
            lr=params.lr,
            epochs=params.epochs,
            batch=params.head_batch,
            seed=self.report.seed,
        )

    def _head(self, states: Tensor | None) -> Head:
        """That of an earlier call, or a new one."""
        if self.params.head is not None:
            width = self.pooled(torch.zeros(1, 2, dtype=torch.long)).shape[-1]
            return Head.of(self.report.open(self.params.head, "probe"), self.params.layer, width, self.classes)
        return self._trained(self._states("ambiguous") if states is None else states, self.labels["ambiguous"])

    def _judged(self, head: Head, states: Tensor | None = None) -> Judged:
        states = self._states("balanced") if states is None else states
        return Judged.of(head, states, self.labels["balanced"], self.labels["spurious"])

    def _examples(self) -> list[Batch]:
        """Some of the ambiguous texts, in batches of equal length."""
        count = len(self.corpora["ambiguous"])
        dice = torch.Generator().manual_seed(self.report.seed)
        some = torch.randperm(count, generator=dice)[: self.params.examples].tolist()
        rows = [self.corpora["ambiguous"].sequences[number].tolist() for number in some]
        found = by_length(rows, self.params.model_batch)
        return [Batch([some[number] for number in numbers], ids, None) for numbers, ids in found]

    def _effects(self, head: Head) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Of each place's features [d_sae] and of its error: summed over tokens, mean over examples."""
        labels = self.labels["ambiguous"]
        measure = HeadMeasure(self.pooled, head, labels, self.params.metric == "probe_logit", self.report)
        attributor = Attributor(self.splice, measure)
        sums = {one.name: torch.zeros(one.d_sae, dtype=torch.float64) for one in self.splice.coders}
        errors = dict.fromkeys(sums, 0.0)
        batches, done = self._examples(), 0
        for number, batch in enumerate(batches):
            runs = attributor.runs(batch)
            every = attributor.atp(batch, runs) if self.params.method == "atp" else None
            for name in self.splice.names:
                steps, ends = self.params.ig_steps, self.params.endpoints
                own = attributor.ig(batch, runs, steps, ends, name) if every is None else every[name]
                sums[name] += own.features.detach().sum((0, 1)).double().cpu()
                errors[name] += float(own.error.sum())
            done += len(batch.numbers)
            self._tokens += batch.clean.numel() * (1 + (1 if every else self.params.ig_steps * len(sums)))
            self.report.progress(number + 1, len(batches))
            if self.report.stopping:
                self.warnings.append(f"Cancelled after {done} examples of the attribution.")
                break
        return {name: one / done for name, one in sums.items()}, {name: one / done for name, one in errors.items()}

    def _live(self) -> dict[str, list[int]]:
        """Features that are on anywhere in the examples."""
        on = {one.name: torch.zeros(one.d_sae, dtype=torch.bool) for one in self.splice.coders}
        for batch in self._examples():
            with torch.no_grad(), self.splice.watched() as seen:
                self.pooled(batch.clean)
            self._tokens += batch.clean.numel()
            for name, values in seen.items():
                on[name] |= (values.features > 0).any(0).any(0).cpu()
        return {name: one.nonzero().flatten().tolist() for name, one in on.items()}

    def _named(self, marked: Sequence[Marked]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for one in marked:
            if one.place not in self.splice.names:
                raise InvalidRequest(f"`ablate` names {one.place!r}; there are dictionaries at {self.splice.names}.")
            if one.feature >= self.splice[one.place].d_sae:
                raise InvalidRequest(
                    f"`ablate` names feature {one.feature} of {one.place}, which has {self.splice[one.place].d_sae}."
                )
            found.setdefault(one.place, []).append(one.feature)
        return {place: sorted(set(some)) for place, some in found.items()}

    def _shown(self, best: Sequence[tuple[str, int, float]]) -> list[Candidate]:
        """What the ambiguous texts show of each candidate; no label of any text is in it."""
        by_place = {name: [feature for place, feature, _ in best if place == name] for name in self.splice.names}
        watched = [
            Watched(self.splice[name].place, self.splice[name].dictionary, some)
            for name, some in by_place.items()
            if some
        ]
        found = described(
            self.splice.sites,
            getattr(self.model, "tokenizer", None),
            watched,
            self.corpora["ambiguous"],
            self.report,
            self.params.reading,
            model_batch=self.params.model_batch,
            skip_first=max((one.skip_first for one in self.splice.coders), default=0),
        )
        self._tokens += sum(len(one) for one in self.corpora["ambiguous"].sequences)
        order = [(name, feature) for name, some in by_place.items() for feature in some]
        shown = dict(zip(order, found, strict=True))
        return [
            Candidate(place=place, feature=feature, effect=effect, shown=shown[place, feature])
            for place, feature, effect in best
        ]

    def _accuracy(self, rows: Sequence[tuple[str, int, Judged]]) -> Table:
        columns = ("head", "draw", "intended", "low", "high", "spurious", "worst_group", "class", "cue", "n")
        return Table(
            name="accuracy",
            columns=columns,
            rows=tuple(
                (
                    name,
                    draw,
                    one.intended,
                    *(one.intended_ci or (None, None)),
                    one.spurious,
                    one.worst,
                    *(self.classes[number] for number in one.group),
                    one.n,
                )
                for name, draw, one in rows
            ),
        )

    def _result(
        self, head: Head, rows: Sequence[tuple[str, int, Judged]], tables: tuple[Table, ...], **more: Any
    ) -> ShiftResult:
        layer, kept = self.params.layer, self.params.head
        if kept is None:
            kept = self.report.artifact(
                "probe",
                {f"{layer}.label": head.weight, f"{layer}.label.bias": head.bias},
                {
                    "format": _FORMAT,
                    "method": "classifier.shift@1",
                    "kind": "label",
                    "model_type": self.splice.sites.model_type,
                    "site": self.params.site,
                    "layers": [layer],
                    "position": "mean",
                    "skip_first": self.params.skip_first,
                    "classes": self.classes,
                },
                name="head",
            )
        return ShiftResult(
            metrics=tuple(_metrics(rows)),
            tables=tables,
            artifacts=() if self.params.head is not None else (kept,),
            warnings=tuple(self.warnings),
            classes=tuple(self.classes),
            head=kept,
            tokens=self._tokens,
            **{"candidates": (), **more},
        )


def _numbers(name: str, labels: Sequence[str], classes: Sequence[str], count: int) -> Tensor:
    if len(labels) != count:
        raise InvalidRequest(f"There are {len(labels)} labels of {name} for {count} texts that have a token.")
    if strange := set(labels) - set(classes):
        raise InvalidRequest(f"{sorted(strange)[0][:64]!r} of {name} is no class; `labels` has {', '.join(classes)}.")
    return torch.tensor([classes.index(one) for one in labels])


def _largest(effects: Mapping[str, Tensor], count: int) -> list[tuple[str, int, float]]:
    """Features by the size of their effects, over all places; those without any are left out."""
    every = [(name, int(one), float(own[one])) for name, own in effects.items() for one in own.nonzero().flatten()]
    return sorted(every, key=lambda one: (-abs(one[2]), one[0], one[1]))[:count]


def _random(
    named: Mapping[str, Sequence[int]], live: Mapping[str, Sequence[int]], dice: torch.Generator
) -> dict[str, list[int]]:
    """As many others at each place, of those that are on."""
    found = {}
    for place, some in named.items():
        others = [one for one in live[place] if one not in set(some)]
        order = torch.randperm(len(others), generator=dice)[: len(some)].tolist()
        found[place] = sorted(others[number] for number in order)
    return found


def _metrics(rows: Sequence[tuple[str, int, Judged]]) -> list[Metric]:
    """Each head's three accuracies; of random features the mean over the draws."""
    found = []
    for name in dict.fromkeys(name for name, _, _ in rows):
        own = [one for known, _, one in rows if known == name]
        firsts, seconds = [one.intended_ci for one in own], [one.spurious_ci for one in own]
        for metric, values, interval in (
            ("intended", [one.intended for one in own], firsts[0] if len(own) == 1 else None),
            ("spurious", [one.spurious for one in own], seconds[0] if len(own) == 1 else None),
            ("worst_group", [one.worst for one in own], None),
        ):
            mean = sum(values) / len(values)
            found.append(Metric(name=metric, value=mean, unit="fraction", n=own[0].n, ci95=interval, split=name))
    return found


def _check_order(splice: Splice, pooled: Pooled) -> None:
    """Raises InvalidRequest for dictionaries at places that come after what the head reads."""
    ids = torch.ones(1, 2, dtype=torch.long, device=next(splice.sites.module.parameters()).device)
    with torch.no_grad(), splice.watched() as seen:
        state_at(splice.sites.module, ids, pooled.place)
    if later := [name for name in splice.names if name not in seen]:
        raise InvalidRequest(
            f"{', '.join(later)} come after the states that the head reads, and cannot matter to it; leave them out of "
            "`saes`, or take a later `layer`."
        )
