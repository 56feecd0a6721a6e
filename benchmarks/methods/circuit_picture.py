"""The picture of docs/methods/circuit.md: a circuit in the small GPT-2 that knows facts, and how faithful it is.

python benchmarks/methods/circuit_picture.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import circuit
import torch
from pictures import beside

from interlace.methods import notebook
from interlace.methods.circuit.plot import curves, graph

_SEED = 100
_HERE = Path(__file__).parents[2] / "docs" / "methods"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else _HERE
    torch.set_num_threads(1)
    model = circuit.facts("gpt")
    with tempfile.TemporaryDirectory() as scratch:
        report = notebook.Notebook(scratch, seed=_SEED, bar=False)
        saes = circuit.trained(model, "gpt", _SEED, Path(scratch), steps=120)
        found, held = circuit.examples(model, _SEED, same=True)
        asked = {"saes": saes, "data": found}
        nodes = notebook.run(circuit.NODES, model, {**asked, "check": 0}, report)
        edges = notebook.run(circuit.EDGES, model, {**asked, "nodes": nodes.circuit, "max_nodes": 24}, report)
        sizes = {"data": held, "nodes": nodes.circuit, "sizes": [0, 10, 20, 40, 80, 160, 320], "batch": 64}
        measured = notebook.run(circuit.EVALUATE, model, {**asked, **sizes}, report)
        beside([graph(edges, edges=60), curves(measured)], folder / "circuit.png")


if __name__ == "__main__":
    main()
