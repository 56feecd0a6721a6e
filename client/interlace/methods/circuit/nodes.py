"""`circuit.nodes`: effects of all nodes, summed where they are measured; only the largest leave the worker."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.circuit.asked import Asked
from interlace.methods.circuit.spec import NodesParams, NodesResult
from interlace.methods.shared import intervals
from interlace.methods.shared.circuits.attribution import ERROR, Attributor, Batch, Effects, Node, Runs, patched_whole
from interlace.methods.shared.circuits.circuit import Circuit, CircuitNode, sites_of
from interlace.methods.shared.circuits.examples import UNITS
from interlace.methods.shared.circuits.splice import Spliced
from interlace.methods.shared.ranking import pearson, spearman
from interlace.methods.shared.sites import evaluating
from interlace.protocol.errors import InvalidRequest

_MOST_TOLD = 2000  # examples in the table
#: A node with the name of its place.
Placed = tuple[str, Node]


def run(model: Any, params: NodesParams, report: Report) -> NodesResult:
    """See `NodesParams`. Raises InvalidRequest, InvalidArtifact."""
    with evaluating(model), torch.no_grad():
        return _Nodes(Asked.of(model, params, params.metric, report), params, report).run()


class _Tally:
    """What is summed at one place: effects, and what its dictionary explains."""

    def __init__(self, one: Spliced, tokens: int | None) -> None:
        self.one = one
        self.by_position = tokens is not None
        shape = (tokens or 1, one.d_sae)
        self.features = torch.zeros(shape, dtype=torch.float64)
        self.error = torch.zeros(shape[0], dtype=torch.float64)
        #: In how many examples the patch differs.
        self.active = torch.zeros(shape, dtype=torch.long)
        self.active_errors = torch.zeros(shape[0], dtype=torch.long)
        self.whole = 0.0
        self._moments = torch.zeros(3, one.d_in, dtype=torch.float64)  # of x, x^2, error^2
        self._on, self._n = 0.0, 0

    def add(self, runs: Runs, effects: Effects | None, whole: Tensor) -> None:
        delta, own = runs.delta(self.one.name), runs.clean[self.one.name]
        differs, error_differs = delta.features != 0, (delta.error != 0).any(-1)
        self.active += (differs.sum(0) if self.by_position else differs.any(1).sum(0)[None]).cpu()
        self.active_errors += (error_differs.sum(0) if self.by_position else error_differs.any(1).sum()[None]).cpu()
        if effects is not None:
            summed = Effects(effects.features.double().sum(0).cpu(), effects.error.double().sum(0).cpu())
            self.features += summed.features if self.by_position else summed.features.sum(0)[None]
            self.error += summed.error if self.by_position else summed.error.sum()[None]
        self.whole += float((whole - runs.m_clean).double().sum())
        kept = slice(self.one.skip_first, None)
        state = (self.one.dictionary.decode(own.features) + own.error)[:, kept].double().flatten(0, 1).cpu()
        error = own.error[:, kept].double().flatten(0, 1).cpu()
        self._moments += torch.stack([state.sum(0), state.pow(2).sum(0), error.pow(2).sum(0)])
        self._on += float((own.features[:, kept] > 0).sum())
        self._n += len(state)

    def nodes(self) -> list[Placed]:
        """All that a patch changes in any example."""
        found: list[Placed] = []
        for at, feature in self.active.nonzero().tolist():
            found.append((self.one.name, Node(at if self.by_position else None, feature)))
        for at in self.active_errors.nonzero().flatten().tolist():
            found.append((self.one.name, Node(at if self.by_position else None, ERROR)))
        return found

    def effect(self, node: Node) -> float:
        at = node.position or 0
        return float(self.error[at] if node.feature == ERROR else self.features[at, node.feature])

    def set(self, node: Node, effect: float) -> None:
        at = node.position or 0
        if node.feature == ERROR:
            self.error[at] = effect
        else:
            self.features[at, node.feature] = effect

    def explained(self) -> float:
        """The share of the state's variance over tokens that is not error."""
        total, squares, left = self._moments
        variance = float((squares - total.pow(2) / max(1, self._n)).sum())
        return 1 - float(left.sum()) / variance if variance > 0 else float("nan")

    def on(self) -> float:
        return self._on / max(1, self._n)


class _Nodes:
    def __init__(self, asked: Asked, params: NodesParams, report: Report) -> None:
        if params.aggregate == "none" and asked.length is None:
            lengths = sorted({one.clean.shape[1] for one in asked.batches})
            raise InvalidRequest(
                f"`data` has prompts of {lengths[0]} and of {lengths[-1]} tokens; `aggregate: none` keeps positions, "
                "and all must have as many. `sum_pos` does not."
            )
        self._asked, self._params, self._report = asked, params, report
        self._attributor: Attributor = asked.attributor
        self._warnings: list[str] = []
        self._m: dict[int, tuple[float, float | None]] = {}

    def run(self) -> NodesResult:
        tokens = self._asked.length if self._params.aggregate == "none" else None
        tallies = {one.name: _Tally(one, tokens) for one in self._asked.splice.coders}
        for number, batch in enumerate(self._asked.batches):
            if self._report.stopping:
                self._warnings.append(f"Cancelled: {len(self._m)} of {len(self._params.data)} examples.")
                break
            self._attribute(batch, tallies)
            self._report.progress(number + 1, len(self._asked.batches))
        every = [node for tally in tallies.values() for node in tally.nodes()]
        checked, exact, rows = self._exact(every, tallies)
        n = max(1, len(self._m))
        estimates = [tallies[name].effect(node) / n for name, node in checked]
        if self._params.method == "exact":
            for (name, node), effect in zip(checked, exact, strict=True):
                tallies[name].set(node, effect * n)
        return self._result(every, tallies, checked, estimates, exact, rows)

    def _attribute(self, batch: Batch, tallies: dict[str, _Tally]) -> None:
        params, attributor = self._params, self._attributor
        runs = attributor.runs(batch)
        others: list[float] | list[None] = (
            [None] * len(batch.numbers) if runs.m_patch is None else runs.m_patch.tolist()
        )
        self._m |= dict(zip(batch.numbers, zip(runs.m_clean.tolist(), others, strict=True), strict=True))
        effects: dict[str, Effects] = attributor.atp(batch, runs) if params.method == "atp" else {}
        for name, tally in tallies.items():
            if params.method == "ig":
                way = params.ig_steps, params.ig_endpoints, name, params.ig_reach
                effects[name] = attributor.ig(batch, runs, *way)
            with attributor.splice.intervened({name: patched_whole(runs.patch[name])}):
                whole = attributor.measure(batch.clean, batch.numbers)
            tally.add(runs, effects.pop(name, None), whole)

    def _exact(self, every: Sequence[Placed], tallies: dict[str, _Tally]) -> tuple[list[Placed], list[float], int]:
        """Nodes, their exact effects, and the patched rows that these took. Raises InvalidRequest over the budget."""
        chosen = list(every)
        if self._params.method != "exact":
            order = torch.randperm(len(every), generator=torch.Generator().manual_seed(self._report.seed))
            chosen = [every[number] for number in order[: self._params.check].sort().values.tolist()]
        rows = sum(self._rows(tallies[name], node) for name, node in chosen)
        if rows > self._params.budget:
            raise InvalidRequest(
                f"{len(chosen):,} active nodes are {rows:,} patched rows, and `params.budget` is "
                f"{self._params.budget:,}. Take `method: ig`, fewer examples or places, or a higher budget."
            )
        if not chosen:
            return [], [], 0
        total = torch.zeros(len(chosen), dtype=torch.float64)
        by_place: dict[str, list[int]] = {}
        for number, (name, _) in enumerate(chosen):
            by_place.setdefault(name, []).append(number)
        done = 0
        for batch in self._asked.batches:
            if set(batch.numbers) - self._m.keys():
                continue  # cancelled before it
            runs = self._attributor.runs(batch)
            for name, numbers in by_place.items():
                nodes = [chosen[number][1] for number in numbers]
                total[numbers] += self._attributor.exact(batch, runs, name, nodes, self._params.batch).sum(1)
            done += len(batch.numbers)
            self._report.progress(done, len(self._m))
        return chosen, (total / max(1, len(self._m))).tolist(), rows

    @staticmethod
    def _rows(tally: _Tally, node: Node) -> int:
        at = node.position or 0
        return int(tally.active_errors[at] if node.feature == ERROR else tally.active[at, node.feature])

    def _result(
        self,
        every: Sequence[Placed],
        tallies: dict[str, _Tally],
        checked: Sequence[Placed],
        estimates: Sequence[float],
        exact: Sequence[float],
        rows: int,
    ) -> NodesResult:
        params, n = self._params, max(1, len(self._m))
        found = [CircuitNode(name, *node, tallies[name].effect(node) / n) for name, node in every]
        least = max(params.threshold, 1e-30)
        nodes = sorted((one for one in found if abs(one.effect) >= least), key=lambda one: -abs(one.effect))
        tokens = self._asked.tokens if params.aggregate == "none" else []
        facts = {
            "method": "circuit.nodes@1",
            "metric": params.metric,
            "by": params.method,
            "aggregate": params.aggregate,
            "length": self._asked.length if params.aggregate == "none" else None,
            "tokens": tokens,
            "examples": len(self._m),
            "threshold": params.threshold,
        }
        splice = self._asked.splice
        circuit = Circuit(splice.sites.model_type, sites_of(splice), nodes[: params.topk], (), facts)
        tables = [circuit.tables()[0], _sites(tallies, circuit, n), self._examples()]
        metrics = self._metrics(len(every))
        if params.method != "exact" and len(checked) > 1:
            metrics += quality(estimates, exact)
            rows_told = [
                (tally.one.place.site, tally.one.place.layer, *node, estimate, value)
                for (name, node), estimate, value in zip(checked, estimates, exact, strict=True)
                for tally in (tallies[name],)
            ]
            columns = ("site", "layer", "position", "feature", "estimate", "exact")
            tables.append(Table(name="checked", columns=columns, rows=tuple(rows_told)))
        kept = self._report.artifact("circuit", *circuit.pack(), name="circuit")
        return NodesResult(
            metrics=tuple(metrics),
            tables=tuple(tables),
            artifacts=(kept,),
            warnings=tuple(self._warnings),
            circuit=kept,
            rows=rows,
            tokens=tokens,
            metric_name=params.metric,
        )

    def _metrics(self, active: int) -> list[Metric]:
        clean = [one for one, _ in self._m.values()]
        both = [(one, other) for one, other in self._m.values() if other is not None]
        value, interval = intervals.mean(clean)
        unit = UNITS[self._params.metric]
        metrics = [Metric(name="m_clean", value=value, unit=unit, n=len(clean), ci95=interval)]
        if both:
            value, interval = intervals.mean([other - one for one, other in both])
            metrics.append(Metric(name="total_effect", value=value, unit=unit, n=len(both), ci95=interval))
        return [*metrics, Metric(name="active_nodes", value=active, unit="nodes")]

    def _examples(self) -> Table:
        rows = tuple((number, *self._m[number]) for number in sorted(self._m)[:_MOST_TOLD])
        return Table(name="examples", columns=("example", "m_clean", "m_patch"), rows=rows)


def _sites(tallies: dict[str, _Tally], circuit: Circuit, n: int) -> Table:
    """Effects are means over examples; `whole` is exact: all nodes of the place patched at once."""
    kept = [one.name for one in circuit.nodes]
    rows = []
    for name, tally in tallies.items():
        effects = float(tally.features.sum()) / n, float(tally.error.sum()) / n, tally.whole / n
        place, active = tally.one.place, len(tally.nodes())
        told = (tally.one.d_sae, tally.on(), tally.explained(), active, kept.count(name))
        rows.append((place.site, place.layer, *told, *effects))
    columns = ("site", "layer", "d_sae", "l0", "explained", "active", "kept", "of_features", "of_errors", "whole")
    return Table(name="sites", columns=columns, rows=tuple(rows))


def quality(estimates: Sequence[float], exact: Sequence[float]) -> list[Metric]:
    """Pearson's and Spearman's correlation of estimates with exact effects, and their slope on them (1 where they are
    right), which a few large effects make up."""
    one, other = torch.tensor(estimates, dtype=torch.float64), torch.tensor(exact, dtype=torch.float64)
    square = float(other @ other)
    slope = float(one @ other) / square if square else float("nan")
    return [
        Metric(name="pearson", value=pearson(one, other), n=len(one), split="checked"),
        Metric(name="spearman", value=spearman(one, other), n=len(one), split="checked"),
        Metric(name="slope", value=slope, n=len(one), split="checked"),
    ]
