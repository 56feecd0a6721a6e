"""What each node of a circuit brings to the metric by way of each later one (2403.19647, section 3.1, appendix A.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interlace.methods.base import Report
from interlace.methods.shared.circuits.attribution import ERROR, Attributor, Batch
from interlace.methods.shared.circuits.circuit import METRIC, CircuitEdge, CircuitNode
from interlace.methods.shared.circuits.splice import Cut, Values


@dataclass(frozen=True)
class Edges:
    """``w(u -> d) = grad_d m(clean) . grad_u d . (u_patch - u_clean)``, no gradient going through other places.

    Run it in `evaluating(model)`.
    """

    attributor: Attributor
    nodes: Sequence[CircuitNode]
    report: Report

    def of(self, batches: Sequence[Batch]) -> tuple[list[CircuitEdge], int]:
        """All edges, means over examples, and how many examples were reached: fewer where the run is stopping.

        One backward of each batch for each node and the metric.
        """
        weights: dict[tuple[int, int], float] = {}
        done, every = 0, sum(len(one.numbers) for one in batches)
        for batch in batches:
            if self.report.stopping:
                break
            for key, weight in self._batch(batch):
                weights[key] = weights.get(key, 0.0) + weight
            done += len(batch.numbers)
            self.report.progress(done, every)
        return [CircuitEdge(*key, weight / max(1, done)) for key, weight in weights.items()], done

    def _batch(self, batch: Batch) -> list[tuple[tuple[int, int], float]]:
        splice, order = self.attributor.splice, self.attributor.splice.names
        runs = self.attributor.runs(batch)
        delta = {name: runs.delta(name) for name in order}
        gradients = self.attributor.gradients(batch)
        found: list[tuple[tuple[int, int], float]] = []
        with torch.enable_grad(), splice.cut() as cut:
            m = self.attributor.measure(batch.clean, batch.numbers).sum()
            for target, node in enumerate(self.nodes):
                total = _chosen(cut.live[node.name], gradients[node.name], node.position, node.feature)
                found += self._into(target, total, order[: order.index(node.name)], cut, delta)
            found += self._into(METRIC, m, order, cut, delta)
        return found

    def _into(
        self, target: int, total: Tensor, places: Sequence[str], cut: Cut, delta: dict[str, Values]
    ) -> list[tuple[tuple[int, int], float]]:
        """What goes into one node, of ``total``: a number that is linear in it."""
        own = {name: [number for number, one in enumerate(self.nodes) if one.name == name] for name in places}
        places = [name for name in places if own[name]]
        if not places or not total.requires_grad:
            return []
        self.report.count(backwards=1)
        leaves = [leaf for name in places for leaf in cut.leaves[name]]
        gradients = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
        found = []
        for number, name in enumerate(places):
            of_features, of_error = gradients[2 * number : 2 * number + 2]
            if of_features is None or of_error is None:
                continue
            moved = Values(of_features * delta[name].features, of_error * delta[name].error)
            for source in own[name]:
                node = self.nodes[source]
                some = moved.error.sum(-1) if node.feature == ERROR else moved.features[..., node.feature]
                weight = some.sum() if node.position is None else some[:, node.position].sum()
                found.append(((source, target), float(weight)))
        return found


def kept(edges: Sequence[CircuitEdge], threshold: float, most: int) -> list[CircuitEdge]:
    """The largest; none of 0."""
    some = [one for one in edges if abs(one.weight) >= max(threshold, 1e-30)]
    return sorted(some, key=lambda one: -abs(one.weight))[:most]


def _chosen(live: Values, gradient: Values, position: int | None, feature: int) -> Tensor:
    """``grad_d m . d``, d as a function of what comes before it; summed over rows, which do not meet."""
    if feature == ERROR:
        each = (gradient.error.detach() * live.error).sum(-1)
    else:
        each = gradient.features[..., feature].detach() * live.features[..., feature]
    return each.sum() if position is None else each[:, position].sum()
