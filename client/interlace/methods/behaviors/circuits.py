"""What carries a cluster: nodes by zeroing them, and edges between the largest, kept as a circuit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import ArtifactName, Report
from interlace.methods.behaviors.samples import Chosen
from interlace.methods.behaviors.spec import ClusterParams, Node
from interlace.methods.shared.capture import by_length
from interlace.methods.shared.circuits.attribution import ERROR, Attributor, Batch, Endpoints
from interlace.methods.shared.circuits.circuit import Circuit, CircuitEdge, CircuitNode, sites_of
from interlace.methods.shared.circuits.edges import Edges, kept

_WAY: Endpoints = "clean_first"  # where the points of `ig` are


@dataclass(frozen=True)
class Carried:
    """The circuit of a cluster; of one that has none, nothing."""

    #: The largest features.
    nodes: tuple[Node, ...] = ()
    #: Between them, by their places in `nodes`.
    edges: tuple[tuple[int, int, float], ...] = ()
    artifact: ArtifactName | None = None


@dataclass(frozen=True)
class Circuits:
    """Of m, -log P of each sample's token."""

    attributor: Attributor
    params: ClusterParams
    report: Report

    def of(self, group: int, samples: Sequence[Chosen], members: Sequence[int]) -> Carried:
        """The circuit of some samples: effects are summed over tokens, and means over them."""
        splice, params = self.attributor.splice, self.params
        batches = [
            Batch([members[number] for number in numbers], ids, None)
            for numbers, ids in by_length([samples[number].before for number in members], params.model_batch)
        ]
        nodes = self._nodes(batches)
        shown = [one for one in nodes if one.feature != ERROR][: params.nodes]
        edges: list[CircuitEdge] = []
        if params.circuit_edges:
            every, _ = Edges(self.attributor, shown, self.report).of(batches)
            edges = kept(every, 0.0, params.circuit_edges)
        others = [one for one in nodes if one not in shown][: max(0, params.circuit_nodes - len(shown))]
        nodes = sorted([*shown, *others], key=_rank)
        rows = [nodes.index(one) for one in shown]
        facts: dict[str, Any] = {
            "metric": "neg_logprob",
            "aggregate": "sum_pos",
            "method": params.method,
            "length": None,
            "tokens": [],
            "cluster": group,
            "examples": len(members),
        }
        moved = [
            CircuitEdge(rows[one.source], one.target if one.target < 0 else rows[one.target], one.weight)
            for one in edges
        ]
        circuit = Circuit(splice.sites.model_type, sites_of(splice), nodes, moved, facts)
        return Carried(
            tuple(Node(place=one.name, feature=one.feature, effect=one.effect) for one in shown),
            tuple((one.source, one.target, one.weight) for one in edges),
            self.report.artifact("circuit", *circuit.pack(), name=f"cluster-{group}"),
        )

    def _nodes(self, batches: Sequence[Batch]) -> list[CircuitNode]:
        """All with an effect, the largest first."""
        splice, params = self.attributor.splice, self.params
        features = {one.name: torch.zeros(one.d_sae, dtype=torch.float64) for one in splice.coders}
        errors = dict.fromkeys(splice.names, 0.0)
        for batch in batches:
            runs = self.attributor.runs(batch)
            every = self.attributor.atp(batch, runs) if params.method == "atp" else None
            for name in splice.names:
                one = self.attributor.ig(batch, runs, params.ig_steps, _WAY, name) if every is None else every[name]
                features[name] += _summed(one.features).sum(0)
                errors[name] += float(_summed(one.error).sum())
        n = sum(len(one.numbers) for one in batches)
        nodes = [
            CircuitNode(name, None, int(one), float(own[one]) / n)
            for name, own in features.items()
            for one in own.nonzero().flatten()
        ]
        nodes += [CircuitNode(name, None, ERROR, own / n) for name, own in errors.items() if own]
        return sorted(nodes, key=_rank)


def _summed(effects: Tensor) -> Tensor:
    """[rows, tokens, ...] over rows."""
    return effects.detach().sum(0).double().cpu()


def _rank(one: CircuitNode) -> tuple[float, str, int]:
    return -abs(one.effect), one.name, one.feature
