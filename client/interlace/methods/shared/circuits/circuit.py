"""A circuit: nodes of a splice with their effects on a number, edges between them, and the artifact that keeps both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.methods.base import Opened, Table
from interlace.methods.shared.circuits.splice import Splice
from interlace.protocol.errors import InvalidArtifact, InvalidRequest
from interlace.protocol.kinds import CIRCUIT

FORMAT = 1
METRIC = -1  # the node that an edge to the metric goes to
_MOST_TOKENS = 512  # told of the first example
_LONGEST_TOKEN = 64


class CircuitNode(NamedTuple):
    """A feature or an error at a place."""

    #: Of the place, as `Splice` has it.
    name: str
    #: A token from 0; None where positions are summed.
    position: int | None
    #: -1 for the error.
    feature: int
    #: In the metric's unit; the mean over examples.
    effect: float


class CircuitEdge(NamedTuple):
    """From a node to a later one, by their numbers; to the metric where ``target`` is `METRIC`."""

    source: int
    target: int
    weight: float


@dataclass(frozen=True)
class Circuit:
    """Nodes, the largest effects first, and edges."""

    model_type: str
    #: Of each place: `name`, `site`, `layer`, `d_in`, `d_sae`, `sae`.
    sites: Sequence[Mapping[str, Any]]
    nodes: Sequence[CircuitNode]
    edges: Sequence[CircuitEdge] = ()
    #: `metric`, `aggregate`, `method`, `length` (tokens; None where examples differ), `tokens` of the first example...
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, opened: Opened) -> "Circuit":
        """Raises InvalidArtifact for what is no circuit of this format."""
        config, tensors, ref = opened.config, opened.tensors, opened.ref
        sites = config.get("sites")
        if config.get("format") != FORMAT or not isinstance(sites, list) or CIRCUIT.keys() - tensors.keys():
            raise InvalidArtifact(f"{ref} is no circuit of format {FORMAT}: `circuit.nodes` makes one.")
        nodes, edges = tensors["nodes"], tensors["edges"]
        fits = nodes.ndim == edges.ndim == 2 and nodes.shape[1] == 3 and edges.shape[1] == 2
        if not fits or len(nodes) != len(tensors["effects"]) or len(edges) != len(tensors["weights"]):
            raise InvalidArtifact(f"{ref}: expected nodes [n, 3], effects [n], edges [e, 2], weights [e].")
        if len(nodes) and not 0 <= int(nodes[:, 0].min()) <= int(nodes[:, 0].max()) < len(sites):
            raise InvalidArtifact(f"{ref}: a node is at a place that is not in `sites`.")
        if len(edges) and not -1 <= int(edges.min()) <= int(edges.max()) < len(nodes):
            raise InvalidArtifact(f"{ref}: an edge is of a node that there is not.")
        names = [str(one["name"]) for one in sites]
        facts = {key: value for key, value in config.items() if key not in ("format", "model_type", "sites")}
        return cls(
            str(config.get("model_type")),
            sites,
            [
                CircuitNode(names[site], None if position < 0 else position, feature, effect)
                for (site, position, feature), effect in zip(nodes.tolist(), tensors["effects"].tolist(), strict=True)
            ],
            [
                CircuitEdge(source, target, weight)
                for (source, target), weight in zip(edges.tolist(), tensors["weights"].tolist(), strict=True)
            ],
            facts,
        )

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The parts of an artifact of the kind `circuit`."""
        numbers = {str(one["name"]): number for number, one in enumerate(self.sites)}
        nodes = [(numbers[one.name], -1 if one.position is None else one.position, one.feature) for one in self.nodes]
        edges = [(one.source, one.target) for one in self.edges]
        tensors = {
            "nodes": torch.tensor(nodes, dtype=torch.int32).reshape(-1, 3),
            "effects": torch.tensor([one.effect for one in self.nodes], dtype=torch.float32),
            "edges": torch.tensor(edges, dtype=torch.int32).reshape(-1, 2),
            "weights": torch.tensor([one.weight for one in self.edges], dtype=torch.float32),
        }
        told = {"format": FORMAT, "model_type": self.model_type, "sites": [dict(one) for one in self.sites]}
        return tensors, {**told, **self.facts}

    def check(self, splice: Splice) -> None:
        """Raises InvalidRequest unless the nodes are of these dictionaries."""
        if self.model_type != splice.sites.model_type:
            raise InvalidRequest(f"The circuit is of a {self.model_type}; this model is a {splice.sites.model_type}.")
        for one in self.sites:
            name = str(one["name"])
            if name not in splice.names or splice[name].d_sae != one["d_sae"]:
                raise InvalidRequest(
                    f"The circuit has {name} with {one['d_sae']} features; `saes` has "
                    f"{', '.join(f'{own.name} with {own.d_sae}' for own in splice.coders)}."
                )

    def tables(self) -> tuple[Table, Table]:
        """`nodes` and `edges`, for people and for pictures."""
        layers = {str(one["name"]): one["layer"] for one in self.sites}
        sites = {str(one["name"]): one["site"] for one in self.sites}
        nodes = tuple((sites[one.name], layers[one.name], *one[1:]) for one in self.nodes)
        return (
            Table(name="nodes", columns=("site", "layer", "position", "feature", "effect"), rows=nodes),
            Table(name="edges", columns=("source", "target", "weight"), rows=tuple(tuple(one) for one in self.edges)),
        )


def sites_of(splice: Splice) -> list[dict[str, Any]]:
    """What a circuit says of its places."""
    return [
        {
            "name": one.name,
            "site": one.place.site,
            "layer": one.place.layer,
            "d_in": one.d_in,
            "d_sae": one.d_sae,
            "sae": one.ref,
        }
        for one in splice.coders
    ]


def shown_tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Tokens as people read them, bounded."""
    return [str(tokenizer.decode([one]))[:_LONGEST_TOKEN] for one in list(ids)[:_MOST_TOKENS]]
