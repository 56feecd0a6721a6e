"""`circuit.edges`: what each node of a circuit brings to the metric by way of each later one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report
from interlace.methods.circuit.asked import Asked
from interlace.methods.circuit.spec import EdgesParams, EdgesResult
from interlace.methods.shared.attribution import ERROR, Batch
from interlace.methods.shared.circuit import METRIC, Circuit, CircuitEdge
from interlace.methods.shared.sites import evaluating
from interlace.methods.shared.splice import Cut, Values
from interlace.protocol.errors import InvalidRequest


def run(model: Any, params: EdgesParams, report: Report) -> EdgesResult:
    """See `EdgesParams`. Raises InvalidRequest, InvalidArtifact."""
    circuit = Circuit.of(report.open(params.nodes, "circuit"))
    metric = circuit.facts["metric"]
    with evaluating(model), torch.no_grad():
        asked = Asked.of(model, params, metric, report)
        circuit.check(asked.splice)
        check_length(circuit, asked)
        nodes = [one for one in circuit.nodes if abs(one.effect) >= params.node_threshold][: params.max_nodes]
        smaller = Circuit(circuit.model_type, circuit.sites, nodes, (), circuit.facts)
        edges, told = _Edges(asked, smaller, report).run()
    kept = [one for one in edges if abs(one.weight) >= max(params.threshold, 1e-30)]
    kept = sorted(kept, key=lambda one: -abs(one.weight))[: params.topk]
    facts = {**circuit.facts, "method": "circuit.edges@1", "edge_threshold": params.threshold}
    found = Circuit(circuit.model_type, circuit.sites, nodes, kept, facts)
    name = report.artifact("circuit", *found.pack(), name="circuit")
    return EdgesResult(
        metrics=(
            Metric(name="nodes", value=len(nodes), unit="nodes"),
            Metric(name="edges", value=len(kept), unit="edges"),
        ),
        tables=found.tables(),
        artifacts=(name,),
        warnings=told,
        circuit=name,
        tokens=list(circuit.facts.get("tokens") or []),
        metric_name=metric,
    )


def check_length(circuit: Circuit, asked: Asked) -> None:
    """Raises InvalidRequest where the circuit keeps positions and the examples have others."""
    length = circuit.facts.get("length")
    if length is not None and length != asked.length:
        has = "prompts of several lengths" if asked.length is None else f"prompts of {asked.length} tokens"
        raise InvalidRequest(f"The circuit keeps the positions of prompts of {length} tokens; `data` has {has}.")


class _Edges:
    """``w(u -> d) = grad_d m(clean) . grad_u d . (u_patch - u_clean)``, no gradient going through other places."""

    def __init__(self, asked: Asked, circuit: Circuit, report: Report) -> None:
        self._asked, self._nodes, self._report = asked, circuit.nodes, report
        order = asked.splice.names
        self._of_place = {
            name: [number for number, one in enumerate(self._nodes) if one.name == name] for name in order
        }
        #: Targets: each node by place, and the metric, with the places before it.
        self._before = {name: order[:number] for number, name in enumerate(order)}

    def run(self) -> tuple[list[CircuitEdge], tuple[str, ...]]:
        weights: dict[tuple[int, int], float] = {}
        done = 0
        for batch in self._asked.batches:
            if self._report.stopping:
                break
            for key, weight in self._batch(batch):
                weights[key] = weights.get(key, 0.0) + weight
            done += len(batch.numbers)
            self._report.progress(done, sum(len(one.numbers) for one in self._asked.batches))
        n = max(1, done)
        whole = done == sum(len(one.numbers) for one in self._asked.batches)
        told = () if whole else (f"Cancelled after {done} examples.",)
        return [CircuitEdge(*key, weight / n) for key, weight in weights.items()], told

    def _batch(self, batch: Batch) -> list[tuple[tuple[int, int], float]]:
        attributor = self._asked.attributor
        runs = attributor.runs(batch)
        delta = {name: runs.delta(name) for name in self._asked.splice.names}
        gradients = attributor.gradients(batch)
        found: list[tuple[tuple[int, int], float]] = []
        with torch.enable_grad(), self._asked.splice.cut() as cut:
            m = attributor.measure(batch.clean, batch.numbers).sum()
            for target, node in enumerate(self._nodes):
                total = _chosen(cut.live[node.name], gradients[node.name], node.position, node.feature)
                found += self._into(target, total, self._before[node.name], cut, delta)
            found += self._into(METRIC, m, self._asked.splice.names, cut, delta)
        return found

    def _into(
        self, target: int, total: Tensor, places: Sequence[str], cut: Cut, delta: dict[str, Values]
    ) -> list[tuple[tuple[int, int], float]]:
        """What goes into one node, of ``total``: a number that is linear in it."""
        places = [name for name in places if self._of_place[name]]
        if not places or not total.requires_grad:
            return []
        self._report.count(backwards=1)
        leaves = [leaf for name in places for leaf in cut.leaves[name]]
        gradients = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
        found = []
        for number, name in enumerate(places):
            of_features, of_error = gradients[2 * number : 2 * number + 2]
            if of_features is None or of_error is None:
                continue
            moved = Values(of_features * delta[name].features, of_error * delta[name].error)
            for source in self._of_place[name]:
                node = self._nodes[source]
                some = moved.error.sum(-1) if node.feature == ERROR else moved.features[..., node.feature]
                weight = some.sum() if node.position is None else some[:, node.position].sum()
                found.append(((source, target), float(weight)))
        return found


def _chosen(live: Values, gradient: Values, position: int | None, feature: int) -> Tensor:
    """``grad_d m . d``, d as a function of what comes before it; summed over rows, which do not meet."""
    if feature == ERROR:
        each = (gradient.error.detach() * live.error).sum(-1)
    else:
        each = gradient.features[..., feature].detach() * live.features[..., feature]
    return each.sum() if position is None else each[:, position].sum()
