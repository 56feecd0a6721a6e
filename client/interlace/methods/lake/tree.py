"""Which of some weights came of which: a tree from distances, and what is not as in a tree.

After MoTHer (Horwitz et al., 2405.18432): a minimum spanning tree of distances. Differences: models are told apart by a
permutation test in place of a given number of clusters, recorded times direct edges before anything else does, and
merges, which lie between those of which they are and would draw edges to themselves, are found before the tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import networkx
import torch
from torch import Tensor

Distance = Literal["frobenius", "rank"]
Kurtosis = Literal["off", "falls", "rises"]
_SAME = 1e-6  # relative distance of what is one and the same
_FEW = 0.25  # share of distinct numbers below which a matrix is quantised
_LAMBDA = 0.3  # MoTHer's weight of the direction term
_ON_LINE = 0.05  # share of a merge that does not lie between its two parents
#: Cosine over which two changes are those of one sweep rather than of two tasks.
FAN_COSINE = 0.25


@dataclass(frozen=True)
class Geometry:
    """What `geometry` measures of n models: all [n, n], symmetric, but for the last two [n]."""

    #: Squared Frobenius distances, over all matrices.
    squared: Tensor
    #: Sum of the energy ranks of differences.
    rank: Tensor
    #: Relative distance of singular values, which no permutation of neurons changes.
    spectral: Tensor
    #: Standard deviations by which two are nearer than with the rows of one permuted.
    z: Tensor
    #: Squared norms.
    norms: Tensor
    kurtosis: Tensor
    #: Least share of distinct numbers.
    distinct: Tensor

    @property
    def relative(self) -> Tensor:
        """Distance over the geometric mean of the norms."""
        scale = (self.norms[:, None] * self.norms[None, :]).sqrt().clamp_min(1e-30)
        return (self.squared / scale).clamp_min(0).sqrt()

    def order(self, names: Sequence[str]) -> list[int]:
        """The models by their norms, which grow as a rule while a model is trained, to 9 digits, then by their names:
        the same however they are listed."""
        return sorted(range(len(names)), key=lambda one: (float(f"{self.norms[one]:.9g}"), names[one]))

    def taken(self, order: Sequence[int]) -> "Geometry":
        """The same of some of the models, in an order."""
        which = torch.tensor(order)
        found = {one.name: getattr(self, one.name)[which] for one in fields(self)}
        return Geometry(**{name: one[:, which] if one.dim() == 2 else one for name, one in found.items()})


@dataclass(frozen=True)
class Edge:
    parent: int
    child: int
    distance: float
    #: 0 to 1: 1 - distance / that of the next best parent; of a merge, the share of it that lies between its two.
    margin: float
    runner_up: int | None
    #: `time`, `root`, `kurtosis`, `quantised`, `centre`, `merge`, `fan`: what gave it its direction.
    directed_by: str


@dataclass
class Heritage:
    """What was found: indices of models."""

    edges: list[Edge] = field(default_factory=list)
    #: Each with those that belong together.
    families: list[list[int]] = field(default_factory=list)
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    #: (merged, one parent, the other, how far along from the one to the other).
    merges: list[tuple[int, int, int, float]] = field(default_factory=list)
    fans: list[list[int]] = field(default_factory=list)
    #: Same up to a permutation of neurons, by singular values alone.
    permuted: list[tuple[int, int]] = field(default_factory=list)


def recover(
    found: Geometry,
    times: Sequence[float | None],
    root: int | None,
    *,
    distance: Distance = "frobenius",
    kurtosis: Kurtosis = "off",
    z_related: float = 8.0,
    siblings: bool = False,
) -> Heritage:
    """The most likely tree of each family. ``root``: one that is known to be older than all of its family.

    Of two with equal times, or else alike (as two centres of a tree), the first in ``found`` is taken for the older.
    With ``siblings`` all of a fan come of what the first of it comes of: right for sweeps, wrong for runs that go on.
    """
    heritage = Heritage()
    n = len(times)
    heritage.duplicates = [(i, j) for i in range(n) for j in range(i + 1, n) if found.relative[i, j] < _SAME]
    copies = {max(pair, key=lambda one: _age(times, one, root)) for pair in heritage.duplicates}
    kept = [one for one in range(n) if one not in copies]
    related = networkx.Graph()
    related.add_nodes_from(kept)
    related.add_edges_from((i, j) for i in kept for j in kept if i < j and found.z[i, j] >= z_related)
    heritage.families = sorted(sorted(one) for one in networkx.connected_components(related))
    heritage.permuted = [
        (i, j) for i in kept for j in kept if i < j and found.z[i, j] < z_related and found.spectral[i, j] < 1e-3
    ]
    lengths = found.relative if distance == "frobenius" else found.rank.double()
    for family in heritage.families:
        if len(family) > 1:
            merges = merged(found, family, times, root)
            of_two = {merge[0] for merge in merges}
            plain = [one for one in family if one not in of_two]
            if all(times[one] is not None or one == root for one in family):
                edges = _by_time(found, lengths, family, of_two, times, root)
            else:
                edges = _tree(found, lengths, plain, root if root in family else None, kurtosis)
                edges = _hung(found, lengths, edges, merges)
            fans = _fans(found, edges)
            if siblings:
                edges = _beside(found, edges, fans)
            heritage.fans += fans
            heritage.merges += merges
            heritage.edges += edges + [edge for merge in merges for edge in _of_two(found, *merge)]
    return heritage


def _age(times: Sequence[float | None], one: int, root: int | None) -> tuple[float, int]:
    """To order by: the root is the oldest, then by time; those without come last."""
    moment = times[one]
    if one == root:
        return (float("-inf"), one)
    return (float("inf") if moment is None else moment, one)


def merged(
    found: Geometry, family: Sequence[int], times: Sequence[float | None], root: int | None
) -> list[tuple[int, int, int, float]]:
    """Weighted means of two others: (which, one, other, how far along), none of them of what is a mean of itself.

    They lie on the line between the two, but for `_ON_LINE` of their distance from the nearer. What is known to be
    older than one of the two is none.
    """
    lines = {one: _lines(found, one, family, times) for one in family if one != root}
    waiting = [one for one, shares in lines.items() if bool((shares < _ON_LINE).any())]
    settled, merges = [one for one in family if one not in waiting], list[tuple[int, int, int, float]]()
    while waiting:
        last = len(merges)
        for one in waiting:
            among = torch.full_like(lines[one], float("inf"))
            among[torch.tensor(settled)[:, None], torch.tensor(settled)] = 0
            share, place = (lines[one] + among).flatten().min(0)
            if share < _ON_LINE:
                a, b = divmod(int(place), len(among))
                merges.append((one, a, b, float(_along(found, one)[a, b])))
        new = [merge[0] for merge in merges[last:]]
        if not new:
            break
        settled += new
        waiting = [one for one in waiting if one not in new]
    return merges


def _along(found: Geometry, one: int) -> Tensor:
    """[n, n]: where on the line from a to b its foot is, 0 at a and 1 at b."""
    apart = found.squared[one]
    return (apart[:, None] + found.squared - apart[None, :]) / (2 * found.squared).clamp_min(1e-30)


def _lines(found: Geometry, one: int, family: Sequence[int], times: Sequence[float | None]) -> Tensor:
    """[n, n]: how far off the line from a to b, as a share of its distance from the nearer; for a > b, and where it is
    not between the two or cannot be of them, infinite."""
    apart, along = found.squared[one], _along(found, one)
    off = (apart[:, None] - along.square() * found.squared) / torch.minimum(apart[:, None], apart[None, :]).clamp_min(
        1e-30
    )
    mine = times[one]
    may = torch.zeros(len(apart), dtype=torch.bool)
    for other in family:
        its = times[other]
        may[other] = other != one and (mine is None or its is None or its <= mine)
    possible = may[:, None] & may[None, :] & (along > 0.05) & (along < 0.95)
    return torch.where(possible.triu(1), off, torch.inf)


def _by_time(
    found: Geometry,
    lengths: Tensor,
    family: list[int],
    of_two: set[int],
    times: Sequence[float | None],
    root: int | None,
) -> list[Edge]:
    """Of each that is no merge: the nearest that is older, a merge as well."""
    order = sorted(family, key=lambda one: _age(times, one, root))
    return [
        _edge(found, lengths, one, order[:place], family, "time")
        for place, one in enumerate(order)
        if place and one not in of_two
    ]


def _beside(found: Geometry, edges: list[Edge], fans: Sequence[Sequence[int]]) -> list[Edge]:
    """The members of each fan as children of one: of what stands over those that no member stands over."""
    own = {edge.child: edge for edge in edges}
    for fan in fans:
        first = next(own[one] for one in fan if own[one].parent not in fan)
        for one in fan:
            distance = float(found.relative[first.parent, one])
            own[one] = Edge(first.parent, one, distance, first.margin, first.runner_up, "fan")
    return [own[edge.child] for edge in edges]


def _of_two(found: Geometry, one: int, a: int, b: int, along: float) -> list[Edge]:
    """A merge's edges."""
    off = float(found.squared[a, one]) - along**2 * float(found.squared[a, b])
    share = off / max(1e-30, min(float(found.squared[a, one]), float(found.squared[b, one])))
    margin = min(1.0, max(0.0, 1 - share))
    return [Edge(parent, one, float(found.relative[parent, one]), margin, None, "merge") for parent in (a, b)]


def _hung(
    found: Geometry, lengths: Tensor, edges: list[Edge], merges: Sequence[tuple[int, int, int, float]]
) -> list[Edge]:
    """What is nearer to a merge than to its parent comes of the merge, unless the merge comes of it."""
    above = networkx.DiGraph([(edge.parent, edge.child) for edge in edges])
    above.add_edges_from((parent, merge[0]) for merge in merges for parent in merge[1:3])
    moved = []
    for edge in edges:
        free = [merge[0] for merge in merges if merge[0] not in networkx.descendants(above, edge.child)]
        nearest = min(free, key=lambda one: float(lengths[one, edge.child]), default=edge.parent)
        if lengths[nearest, edge.child] < lengths[edge.parent, edge.child]:
            above.remove_edge(edge.parent, edge.child)
            above.add_edge(nearest, edge.child)
            edge = _named(found, lengths, nearest, edge.child, [edge.parent], edge.directed_by)
        moved.append(edge)
    return moved


def _tree(found: Geometry, lengths: Tensor, family: list[int], root: int | None, kurtosis: Kurtosis) -> list[Edge]:
    if kurtosis != "off" and root is None:
        return _arborescence(found, lengths, family, kurtosis)
    return _directed(found, lengths, family, root)


def _edge(found: Geometry, lengths: Tensor, child: int, parents: Sequence[int], family: Sequence[int], by: str) -> Edge:
    """The nearest of the possible parents; a quantised one only where there is no other."""
    whole = [one for one in parents if found.distinct[one] >= _FEW] or list(parents)
    ranked = sorted(whole, key=lambda one: (float(lengths[one, child]), float(found.relative[one, child])))
    best = float(lengths[ranked[0], child])
    second = float(lengths[ranked[1], child]) if len(ranked) > 1 else None
    margin = 1.0 if second is None else 0.0 if second <= 0 else max(0.0, 1 - best / second)
    return Edge(ranked[0], child, float(found.relative[ranked[0], child]), margin, next(iter(ranked[1:]), None), by)


def _directed(found: Geometry, lengths: Tensor, family: list[int], root: int | None) -> list[Edge]:
    """The minimum spanning tree from its root outwards: the known one, or its centre. What is quantised is a leaf."""
    graph = networkx.Graph()
    graph.add_nodes_from(family)
    leaves = [one for one in family if found.distinct[one] < _FEW and one != root]
    inner = [one for one in family if one not in leaves] or family
    for i in inner:
        graph.add_weighted_edges_from((i, j, float(lengths[i, j]) + 1e-12) for j in inner if i < j)
    tree = networkx.minimum_spanning_tree(graph.subgraph(inner))
    by = "root"
    if root is None:
        hops = dict(networkx.all_pairs_shortest_path_length(tree))
        root = min(inner, key=lambda one: (sum(hops[one].values()), one))
        by = "centre"
    edges = []
    for parent, child in networkx.bfs_edges(tree, root):
        others = [one for one in inner if one != child and one not in networkx.descendants(_below(tree, root), child)]
        edges.append(_named(found, lengths, parent, child, others, by))
    return edges + [_edge(found, lengths, one, inner, family, "quantised") for one in leaves if one not in inner]


def _below(tree: "networkx.Graph", root: int) -> "networkx.DiGraph":
    return networkx.bfs_tree(tree, root)


def _named(found: Geometry, lengths: Tensor, parent: int, child: int, others: Sequence[int], by: str) -> Edge:
    """An edge that the tree has, and how much worse the next best would be."""
    best = float(lengths[parent, child])
    rest = sorted((one for one in others if one != parent), key=lambda one: float(lengths[one, child]))
    second = float(lengths[rest[0], child]) if rest else None
    margin = 1.0 if second is None else 0.0 if second <= 0 else min(1.0, max(0.0, 1 - best / second))
    return Edge(parent, child, float(found.relative[parent, child]), margin, next(iter(rest), None), by)


def _arborescence(found: Geometry, lengths: Tensor, family: list[int], kurtosis: Kurtosis) -> list[Edge]:
    """MoTHer's own: edges against the order of kurtosis cost lambda times the mean distance more."""
    mean = float(torch.stack([lengths[i, j] for i in family for j in family if i != j]).mean())
    sign = 1.0 if kurtosis == "falls" else -1.0
    graph = networkx.DiGraph()
    for i in family:
        for j in family:
            if i != j:
                against = sign * float(found.kurtosis[j] - found.kurtosis[i]) > 0
                graph.add_edge(i, j, weight=float(lengths[i, j]) + _LAMBDA * mean * against)
    tree = networkx.minimum_spanning_arborescence(graph)
    return [_named(found, lengths, i, j, [one for one in family if one != j], "kurtosis") for i, j in tree.edges]


def _cosine(found: Geometry, at: int, one: int, other: int) -> float:
    """Of the changes from ``at`` to two others, from squared distances alone."""
    a, b, c = float(found.squared[at, one]), float(found.squared[at, other]), float(found.squared[one, other])
    return float((a + b - c) / (2 * max(1e-30, (a * b) ** 0.5)))


def _fans(found: Geometry, edges: list[Edge]) -> list[list[int]]:
    """Groups of three and more whose changes from one parent are alike, as those of a sweep are: no tree is theirs.

    Two children of one parent are held together where their changes have a cosine over FAN_COSINE; so are a child and
    what the tree has put under it, where the second change goes along (or back along) the first.
    """
    parent_of = {edge.child: edge.parent for edge in edges}
    alike = networkx.Graph()
    for child, parent in parent_of.items():
        for other, its in parent_of.items():
            if its == parent and other > child:
                cosine = _cosine(found, parent, child, other)
            elif its == child:
                cosine = abs(_cosine(found, child, parent, other))
            else:
                continue
            if cosine > FAN_COSINE:
                alike.add_edge(child, other)
    return sorted(sorted(group) for group in networkx.connected_components(alike) if len(group) > 2)
