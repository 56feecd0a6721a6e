"""`lake.recover` on trees that are known, lineage that jobs record, and search: beside what is published.

    python benchmarks/methods/lake.py [--seeds 14 15 16] [--splits finetune lora ...] [--strangers 20] [--json FILE]

Models: two trees of 1 + 3 + 9 language models of 0.1 M parameters (`lake_zoo`). Edge accuracy is the share of 24 edges
with the right parent, undirected that with the right pair. Published, of other models: MoTHer (2405.18432, code and
reviews) has 3 of 5 trees of fine-tuned ViTs perfect, 5 of 5 of LoRAs, .89 of the whole graph; in the wild (2503.10633)
MoTHer has .33 / .19 / .51 on Qwen, Llama, Stable Diffusion, Model Atlas, which uses times, .79 / .80 / .85.

Of `lake.recover@1` seeds 11 to 13 are in lake.json; @2 was written on seeds 5 and 6.

Thresholds, written before the run, for means over seeds:
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import lake_zoo
import torch
from claims import Claim, judged, written
from lake_zoo import Zoo
from torch import Tensor

from interlace.methods.lake.measure import geometry
from interlace.methods.lake.tree import Geometry, Heritage, recover
from interlace.methods.shared import weights as _weights

SPLITS = ("finetune", "uneven", "lora", "fan", "lora-fan")
CLAIMS = (
    Claim("with times, at least .95 of edges are right", lambda of: of["time"] >= 0.95, "tree"),
    Claim("with a root that is known, at least .95", lambda of: of["root"] >= 0.95, "tree"),
    Claim("without either, at least .85", lambda of: of["none"] >= 0.85, "tree"),
    Claim("... and at least .95 undirected", lambda of: of["none_undirected"] >= 0.95, "tree"),
    Claim("families are the two trees", lambda of: of["families"] == 1, "tree"),
    Claim("at most .1 of groups that are no fans are called so", lambda of: of["fans"] <= 0.1, "tree"),
    Claim(
        "at least .9 of fans are called so, or the rank finds .95 of edges",
        lambda of: max(of["fans"] / 0.9, of["rank_time"] / 0.95) >= 1,
        "fan",
    ),
    Claim("told that fans are sweeps, at least .9 of edges with times", lambda of: of["siblings"] >= 0.9, "fan fan"),
    Claim("... of LoRAs, by rank", lambda of: of["siblings_rank"] >= 0.9, "fan lora-fan"),
    Claim("... and by rank at least .9 of them are called fans", lambda of: of["fans_rank"] >= 0.9, "fan lora-fan"),
    Claim("a tree that is told to have sweeps loses none of its edges", lambda of: of["siblings"] >= 0.95, "tree"),
    Claim("by rank at most .1 of groups that are no fans are", lambda of: of["fans_rank"] <= 0.1, "tree lora"),
    Claim("at most .01 of unrelated pairs are called related", lambda of: of["false_related"] <= 0.01, "strangers"),
    Claim("a copy in 4 bits is found under its original, as a leaf", lambda of: of["quantised"] == 1, "copies"),
    Claim(
        "a permuted copy is related to none by weights, and found by singular values",
        lambda of: of["permuted"] == 1,
        "copies",
    ),
    Claim("a mean of two is called their merge", lambda of: of["merge"] == 1, "copies"),
    Claim("a copy is called a duplicate", lambda of: of["duplicate"] == 1, "copies"),
    Claim("sketches give the same edges as weights", lambda of: of["sketch_time"] >= 0.95, "tree"),
)
__doc__ = (__doc__ or "") + "\n".join(f"* {one.of}: {one.says}" for one in CLAIMS) + "\n"


def models_of(tensors: Sequence[Mapping[str, Tensor]], *, sketched: bool = False) -> list[_weights.Weights]:
    """As `lake.recover` would see them; sketched, without the matrices themselves."""

    def matrix(of: Mapping[str, Tensor], name: str) -> _weights.Matrix:
        found = _weights.Matrix.of(name, of[name])
        return (
            _weights.Matrix(None, found.sketch, found.spectrum, found.kurtosis, found.distinct) if sketched else found
        )

    return [_weights.Weights(str(number), lambda name, of=of: matrix(of, name)) for number, of in enumerate(tensors)]


NAMES = _weights.names_of(lake_zoo.fresh(0))


def measured(
    tensors: Sequence[Mapping[str, Tensor]], seed: int, *, sketched: bool = False, ranks: bool = False
) -> Geometry:
    return geometry(models_of(tensors, sketched=sketched), NAMES, seed, ranks=ranks)


def right(found: Heritage, parent: Mapping[int, int], *, directed: bool = True) -> float:
    edges = {(one.parent, one.child) for one in found.edges}
    if not directed:
        edges |= {(child, parent) for parent, child in edges}
    return sum((of, child) in edges for child, of in parent.items()) / len(parent)


def of_tree(zoo: Zoo, seed: int) -> dict[str, float]:
    """Edge accuracies of one zoo under each knowledge of it."""
    found = measured(zoo.tensors, seed, ranks=True)
    n = len(zoo.tensors)
    times: list[float | None] = [float(number) for number in range(n)]
    nobody: list[float | None] = [None] * n
    roots = [number for number in range(n) if number not in zoo.parent]
    by_time = recover(found, times, None)
    by_rank = recover(found, times, None, distance="rank")
    bare = recover(found, nobody, None)
    figures = {
        "time": right(by_time, zoo.parent),
        "none": right(bare, zoo.parent),
        "none_undirected": right(bare, zoo.parent, directed=False),
        "rank_time": right(by_rank, zoo.parent),
        "siblings": right(recover(found, times, None, siblings=True), zoo.parent),
        "siblings_rank": right(recover(found, times, None, distance="rank", siblings=True), zoo.parent),
        "siblings_none": right(recover(found, nobody, None, siblings=True), zoo.parent),
        "fans_rank": fans_of(by_rank, zoo),
        "kurtosis_falls": right(recover(found, nobody, None, kurtosis="falls"), zoo.parent),
        "kurtosis_rises": right(recover(found, nobody, None, kurtosis="rises"), zoo.parent),
        "sketch_time": right(recover(measured(zoo.tensors, seed, sketched=True), times, None), zoo.parent),
        "families": float(len(by_time.families) == 2),
        "chance": 1 / (n - 1),
    }
    edges = []
    for root in roots:
        known = recover(found, nobody, root)
        family = next(one for one in known.families if root in one)
        edges += [edge for edge in known.edges if edge.child in family]
    figures["root"] = right(Heritage(edges=edges), zoo.parent)
    figures["fans"] = fans_of(by_time, zoo)
    return figures


def fans_of(found: Heritage, zoo: Zoo) -> float:
    """The share of groups of one parent's children that are called fans."""
    groups = [set(group) for group in found.fans]
    return sum(any(len(set(group) & one) >= 3 for one in groups) for group in zoo.groups) / len(zoo.groups)


def of_copies(zoo: Zoo, seed: int) -> dict[str, float]:
    """What is no child: copies of a model of the zoo, in other forms, and a merge."""
    dice = torch.Generator().manual_seed(seed)
    n = len(zoo.tensors)
    original, one, other = 1, 2, 3
    extra = [
        lake_zoo.quantised(zoo.tensors[original]),
        lake_zoo.permuted(zoo.tensors[original], dice),
        lake_zoo.mean(zoo.tensors[one], zoo.tensors[other]),
        dict(zoo.tensors[original]),
    ]
    _same_function(zoo.tensors[original], extra[1])
    found = recover(measured([*zoo.tensors, *extra], seed), [None] * (n + 4), 0)
    edges = {(edge.parent, edge.child) for edge in found.edges}
    is_leaf = all(edge.parent != n for edge in found.edges)
    alone = [n + 1] in found.families
    return {
        "quantised": float((original, n) in edges and is_leaf),
        "permuted": float(alone and (original, n + 1) in found.permuted),
        "merge": float(any(merge[0] == n + 2 and set(merge[1:3]) == {one, other} for merge in found.merges)),
        "false_merges": float(sum(merge[0] != n + 2 for merge in found.merges)),
        "duplicate": float((original, n + 3) in found.duplicates and len(found.duplicates) == 1),
    }


def _same_function(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    model, ids = lake_zoo.fresh(0), torch.arange(20)[None]
    said = [torch.func.functional_call(model, dict(of), (ids,)).logits for of in (one, other)]
    torch.testing.assert_close(said[0], said[1], rtol=1e-3, atol=1e-3)


def of_strangers(zoo: Zoo, n: int, seed: int) -> dict[str, float]:
    """Models that began apart, beside the zoo."""
    tensors = [*zoo.tensors, *lake_zoo.strangers(n, seed)]
    z, first = measured(tensors, seed).z, len(zoo.tensors)
    pairs = [float(z[i, j]) for i in range(len(tensors)) for j in range(max(first, i + 1), len(tensors))]
    return {"false_related": sum(one >= 8 for one in pairs) / len(pairs), "highest_z": max(pairs), "pairs": len(pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[14, 15, 16])
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS)
    parser.add_argument("--strangers", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    each: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        for split in arguments.splits:
            began = time.process_time()
            zoo = lake_zoo.zoo(split, seed)
            made = time.process_time()
            figures = of_tree(zoo, seed)
            name = f"{'fan' if 'fan' in split else 'tree'} {split}"
            spent = {"training_cpu_s": made - began, "recovering_cpu_s": time.process_time() - made}
            each.setdefault(name, []).append({**figures, **spent})
            if split == "finetune":
                each.setdefault("copies", []).append(of_copies(zoo, seed))
                each.setdefault("strangers", []).append(of_strangers(zoo, arguments.strangers, seed))
            print(seed, name, json.dumps({one: round(value, 3) for one, value in figures.items()}), flush=True)
        told(each, arguments.seeds[: 1 + arguments.seeds.index(seed)], arguments.json)


def told(each: Mapping[str, list[dict[str, float]]], seeds: Sequence[int], file: Path | None) -> None:
    """What the seeds until now have shown."""
    means = {
        name: {one: statistics.fmean(figures[one] for figures in found) for one in found[0]}
        for name, found in each.items()
    }
    print(json.dumps(means, indent=1))
    verdicts = judged(CLAIMS, means)
    written(file, means, verdicts, seeds=list(seeds), each_seed=each)


if __name__ == "__main__":
    main()
