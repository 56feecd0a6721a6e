"""`circuit.evaluate`: m with all but a circuit ablated, without the circuit, and with random nodes in its place."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.circuit.asked import Asked
from interlace.methods.circuit.edges import check_length
from interlace.methods.circuit.spec import EvaluateParams, EvaluateResult
from interlace.methods.shared import intervals
from interlace.methods.shared.circuits.attribution import ERROR, Batch
from interlace.methods.shared.circuits.circuit import Circuit, CircuitNode
from interlace.methods.shared.circuits.examples import UNITS
from interlace.methods.shared.circuits.splice import Intervention, Spliced, Values
from interlace.methods.shared.sites import evaluating
from interlace.protocol.errors import InvalidRequest

_OF_SET = ("threshold", "size", "nodes", "features", "errors", "share")
_COLUMNS = (*_OF_SET, "m", "faithfulness", "low", "high", "completeness", "random", "random_most")
_RESAMPLES = 500  # of the examples, for an interval
_SMALL = 1e-6  # what m(model) and m(nothing) must differ by


class Kept(NamedTuple):
    """Which nodes of a place stay: [tokens or 1, d_sae] and [tokens or 1]."""

    features: Tensor
    error: Tensor


#: By place.
Mask = dict[str, Kept]


def run(model: Any, params: EvaluateParams, report: Report) -> EvaluateResult:
    """See `EvaluateParams`. Raises InvalidRequest, InvalidArtifact."""
    circuit = Circuit.of(report.open(params.nodes, "circuit"))
    with evaluating(model), torch.no_grad():
        asked = Asked.of(model, params, circuit.facts["metric"], report)
        circuit.check(asked.splice)
        check_length(circuit, asked)
        if params.ablation == "resample" and params.data[0].patch is None:
            raise InvalidRequest("`ablation: resample` takes what nodes are in `patch` of each example; there is none.")
        return _Evaluation(asked, circuit, params, report).run()


class _Evaluation:
    def __init__(self, asked: Asked, circuit: Circuit, params: EvaluateParams, report: Report) -> None:
        self._asked, self._circuit, self._params, self._report = asked, circuit, params, report
        self._tokens = circuit.facts.get("length") or 1
        self._device = next(asked.splice.sites.module.parameters()).device
        self._warnings: list[str] = []
        self._means: dict[str, Values] = {}
        self._active: list[CircuitNode] = []

    def run(self) -> EvaluateResult:
        m_model = self._look()
        m_empty = self._measured(self._mask([]))
        gap = float(m_model.mean() - m_empty.mean())
        if abs(gap) < _SMALL:
            self._warnings.append("The model without any node says what the model says: nothing can be faithful to it.")
        rows, sets = [], self._sets()
        for done, (threshold, nodes) in enumerate(sets):
            if self._report.stopping:
                self._warnings.append(f"Cancelled after {done} of {len(sets)} circuits.")
                break
            rows.append(self._row(threshold, nodes, m_model, m_empty))
            self._report.progress(done + 1, len(sets))
        unit = UNITS[self._circuit.facts["metric"]]
        metrics = []
        for name, values in (("m_model", m_model), ("m_empty", m_empty)):
            value, interval = intervals.mean(values.tolist())
            metrics.append(Metric(name=name, value=value, unit=unit, n=len(values), ci95=interval))
        metrics.append(Metric(name="active_nodes", value=len(self._active), unit="nodes"))
        return EvaluateResult(
            metrics=tuple(metrics),
            tables=(Table(name="faithfulness", columns=_COLUMNS, rows=tuple(rows)),),
            warnings=tuple(self._warnings),
            metric_name=self._circuit.facts["metric"],
        )

    def _sets(self) -> list[tuple[float | None, list[CircuitNode]]]:
        every, params = list(self._circuit.nodes), self._params
        if params.sizes is not None:
            return [(None, every[:size]) for size in params.sizes]
        thresholds = [0.0] if params.thresholds is None else params.thresholds
        return [(least, [one for one in every if abs(one.effect) >= least]) for least in thresholds]

    def _row(
        self, threshold: float | None, nodes: list[CircuitNode], m_model: Tensor, m_empty: Tensor
    ) -> tuple[float | int | None, ...]:
        counted = [one for one in nodes if self._counts(one)]
        m = self._measured(self._mask(counted))
        completeness = None
        if self._params.complement:
            completeness = faithfulness(self._measured(self._mask(counted, inverse=True)), m_model, m_empty)
        random = []
        dice = torch.Generator().manual_seed(self._report.seed)
        for _ in range(self._params.controls):
            order = torch.randperm(len(self._active), generator=dice)[: len(counted)].tolist()
            own = self._mask([self._active[number] for number in order])
            random.append(faithfulness(self._measured(own), m_model, m_empty))
        errors = sum(one.feature == ERROR for one in counted)
        return (
            threshold,
            len(nodes),
            len(counted),
            len(counted) - errors,
            errors,
            len(counted) / max(1, len(self._active)),
            float(m.mean()),
            faithfulness(m, m_model, m_empty),
            *interval(m, m_model, m_empty, self._report.seed),
            completeness,
            sum(random) / len(random) if random else None,
            max(random, key=abs) if random else None,
        )

    def _counts(self, node: CircuitNode) -> bool:
        """Whether a node is one that may be kept or not: not one that is given, nor an error that all circuits have."""
        one = self._asked.splice[node.name]
        return not self._is_free(one) and not (node.feature == ERROR and self._fixed(one) is not None)

    def _is_free(self, one: Spliced) -> bool:
        start = self._params.start_layer
        return start is not None and (one.place.layer is None or one.place.layer < start)

    def _fixed(self, one: Spliced) -> bool | None:
        """Whether errors of a place are kept or ablated, whatever the circuit says; None where it says."""
        if self._params.errors == "resid_only":
            return None if one.place.site == "resid_post" else False
        return {"default": None, "keep": True, "remove": False}[self._params.errors]

    def _look(self) -> Tensor:
        """m of the model; the means of values and which nodes are active, on the way."""
        asked = self._asked
        found = torch.empty(sum(len(one.numbers) for one in asked.batches), dtype=torch.float64)
        by_position = asked.length is not None
        if not by_position and self._params.ablation == "mean":
            self._warnings.append("Prompts are of several lengths: means are over all positions.")
        sums: dict[str, Values] = {}
        active: dict[str, Tensor] = {}
        n = 0
        for batch in asked.batches:
            runs = asked.attributor.runs(batch)
            found[batch.numbers] = runs.m_clean.double().cpu()
            of = runs.clean if batch.patch is None else runs.patch
            for name, values in of.items():
                own = Values(*(one.double().sum(0) for one in values))
                own = own if by_position else Values(*(one.sum(0)[None] for one in own))
                sums[name] = Values(*(a + b for a, b in zip(sums[name], own, strict=True))) if name in sums else own
                on = (runs.clean[name].features > 0).any(0)
                on = on if self._tokens > 1 or self._circuit.facts.get("length") else on.any(0)[None]
                active[name] = active[name] | on if name in active else on
            n += len(batch.numbers) * (1 if by_position else batch.clean.shape[1])
        self._means = {name: Values(*((one / n).float() for one in own)) for name, own in sums.items()}
        for name, on in active.items():
            one = asked.splice[name]
            has_positions = self._circuit.facts.get("length") is not None
            places = [(at, feature) for at, feature in on.nonzero().tolist()]
            places += [(at, ERROR) for at in range(len(on))]
            nodes = [CircuitNode(name, at if has_positions else None, feature, 0.0) for at, feature in places]
            self._active += [node for node in nodes if self._counts(node) and not self._is_free(one)]
        return found

    def _mask(self, nodes: Sequence[CircuitNode], *, inverse: bool = False) -> Mask:
        """Nodes that stay; ``inverse``: all but these, of those that count."""
        found: Mask = {}
        for one in self._asked.splice.coders:
            kept = Kept(
                torch.full((self._tokens, one.d_sae), inverse, device=self._device),
                torch.full((self._tokens,), inverse, device=self._device),
            )
            for node in nodes:
                if node.name == one.name:
                    at = node.position or 0
                    if node.feature == ERROR:
                        kept.error[at] = not inverse
                    else:
                        kept.features[at, node.feature] = not inverse
            if (fixed := self._fixed(one)) is not None:
                kept.error[:] = fixed
            if not self._is_free(one):
                found[one.name] = kept
        return found

    def _measured(self, mask: Mask) -> Tensor:
        """m of each example with what is not in the mask ablated, [examples], double."""
        asked = self._asked
        found = torch.empty(sum(len(one.numbers) for one in asked.batches), dtype=torch.float64)
        for batch in asked.batches:
            with asked.splice.intervened(self._ablations(mask, batch)):
                m = asked.attributor.measure(batch.clean, batch.numbers)
            found[batch.numbers] = m.double().cpu()
        return found

    def _ablations(self, mask: Mask, batch: Batch) -> Mapping[str, Intervention]:
        patch: Mapping[str, Values] = {}
        if self._params.ablation == "mean":
            patch = self._means
        elif self._params.ablation == "resample":
            patch = self._asked.attributor.runs(batch).patch

        def put(name: str, kept: Kept) -> Intervention:
            def change(old: Values) -> Values:
                other = patch[name] if patch else Values(*(torch.zeros_like(one) for one in old))
                return Values(
                    torch.where(kept.features, old.features, other.features),
                    torch.where(kept.error[..., None], old.error, other.error),
                )

            return change

        return {name: put(name, kept) for name, kept in mask.items()}


def faithfulness(m: Tensor, m_model: Tensor, m_empty: Tensor) -> float:
    """(m(C) - m(nothing)) / (m(M) - m(nothing)), each the mean over examples (section 3.2)."""
    gap = float(m_model.mean() - m_empty.mean())
    return float(m.mean() - m_empty.mean()) / gap if abs(gap) >= _SMALL else float("nan")


def interval(m: Tensor, m_model: Tensor, m_empty: Tensor, seed: int) -> tuple[float | None, float | None]:
    """95 %, of resampled examples."""
    n = len(m)
    if n < 2 or abs(float(m_model.mean() - m_empty.mean())) < _SMALL:
        return None, None
    drawn = torch.randint(n, (_RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    top, bottom = (m - m_empty)[drawn].mean(1), (m_model - m_empty)[drawn].mean(1)
    low, high = (top / bottom).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
