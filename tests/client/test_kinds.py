"""What an upload of a circuit must be, as far as it shows without a tensor library."""

import io
import json
from typing import Any

import pytest
import torch
from safetensors.torch import save

from interlace.methods.base import Opened
from interlace.methods.shared.circuits.circuit import Circuit, CircuitEdge, CircuitNode
from interlace.protocol.errors import InvalidArtifact
from interlace.protocol.kinds import check
from interlace.protocol.safetensors import read_header

SITE = {"name": "resid_post.2", "site": "resid_post", "layer": 2, "d_in": 4, "d_sae": 8, "sae": "artifact:0"}
NODES = [CircuitNode("resid_post.2", 1, 3, 0.5), CircuitNode("resid_post.2", None, -1, -0.25)]
CIRCUIT = Circuit("gpt2", [SITE], NODES, [CircuitEdge(0, 1, 2.0), CircuitEdge(1, -1, -1.0)], {"metric": "logprob"})


def told(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Any:
    data = save(tensors)
    return check("circuit", json.dumps(config).encode(), read_header(io.BytesIO(data), len(data), "it"), 64)


def test_a_circuit_comes_back_as_it_was() -> None:
    tensors, config = CIRCUIT.pack()
    assert told(tensors, config).facts == {"metric": "logprob", "model_type": "gpt2"}
    assert Circuit.of(Opened("circuit", tensors, config, "it")) == CIRCUIT
    nothing = Circuit("gpt2", [SITE], [], (), {}).pack()
    assert told(*nothing).n_params == 0


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        ({}, {"format": 2}, "`format` 1"),
        ({}, {"sites": []}, "list of 1 to"),
        ({"more": torch.zeros(1)}, {}, "nothing else"),
        ({"nodes": torch.zeros(2, 3)}, {}, "nodes .* must be I32"),
        ({"nodes": torch.zeros(2, 4, dtype=torch.int32)}, {}, r"I32 \[n, 3\]"),
        ({"weights": torch.zeros(1)}, {}, "edges and weights .* of one number"),
    ],
)
def test_what_is_no_circuit_is_refused(tensors: dict[str, torch.Tensor], config: dict[str, Any], said: str) -> None:
    own, its = CIRCUIT.pack()
    with pytest.raises(InvalidArtifact, match=said):
        told({**own, **tensors}, {**its, **config})
