"""`circuit.edges`: what each node of a circuit brings to the metric by way of each later one."""

from typing import Any

import torch

from interlace.methods.base import Metric, Report
from interlace.methods.circuit.asked import Asked
from interlace.methods.circuit.spec import EdgesParams, EdgesResult
from interlace.methods.shared.circuits import edges
from interlace.methods.shared.circuits.circuit import Circuit
from interlace.methods.shared.circuits.edges import Edges
from interlace.methods.shared.sites import evaluating
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
        every, reached = Edges(asked.attributor, nodes, report).of(asked.batches)
    kept = edges.kept(every, params.threshold, params.topk)
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
        warnings=() if reached == len(params.data) else (f"Cancelled after {reached} examples.",),
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
