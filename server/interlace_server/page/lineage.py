"""A lineage as a drawing: what an entry came of to the left, what came of it to the right."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from interlace.protocol.lake import Edge, LineageGraph, Node
from interlace_server.page.svg import shortened

_WIDE, _HIGH = 178, 46
_APART, _GAP = 70, 14
_EDGE = 12
_LANE = 8  # pixels of the way past a column's boxes
_LABEL = 24  # characters
_GONE = frozenset({"deleted", "hidden"})


def drawn(graph: LineageGraph, says: str) -> Markup:
    """Boxes, each a link to its entry's card and further to the right than its parents, with arrows between them.

    Dashed: what was recovered, and what is deleted or not the reader's to see.
    """
    layer = _layers(graph)
    edges = [edge for edge in graph.edges if layer.get(edge.parent, 0) < layer.get(edge.child, 0)]
    places, (wide, high) = _places(graph, edges, layer)
    opened = Markup(
        '<svg class="drawing" role="group" width="{0}" height="{1}" viewBox="0 0 {0} {1}" aria-label="{2}">'
    )
    parts = [opened.format(wide, high, says)]
    for edge in edges:
        kind = "edge inferred" if edge.source == "inferred" else "edge"
        what = edge.relation if edge.method is None else f"{edge.relation}, {edge.method}"
        between = range(layer[edge.parent] + 1, layer[edge.child])
        lanes = [places[edge.parent, edge.child, column] for column in between]
        parts.append(_arrow(places[edge.parent], places[edge.child], lanes, kind, what))
    for node in graph.nodes:
        parts.append(_box(node, places[node.id], node.id == graph.root))
    return Markup("").join([*parts, Markup("</svg>")])


def _places(
    graph: LineageGraph, edges: Sequence[Edge], layer: Mapping[str, int]
) -> tuple[dict[Any, tuple[int, int]], tuple[int, int]]:
    """The upper left corner of each node's box, and of the lane of each edge in each column that it passes by; the
    size of it all."""
    columns: list[list[tuple[Any, int]]] = [[] for _ in range(1 + max(layer.values(), default=0))]
    for node in sorted(graph.nodes, key=lambda node: (node.created or 0.0, node.id)):
        columns[layer[node.id]].append((node.id, _HIGH))
    for edge in edges:
        for past in range(layer[edge.parent] + 1, layer[edge.child]):
            columns[past].insert(0, ((edge.parent, edge.child, past), _LANE))
    heights = [sum(high + _GAP for _, high in column) - _GAP for column in columns]
    whole = max(heights) + 2 * _EDGE
    places: dict[Any, tuple[int, int]] = {}
    for number, (column, height) in enumerate(zip(columns, heights, strict=True)):
        top = (whole - height) // 2
        for key, high in column:
            places[key] = (_EDGE + number * (_WIDE + _APART), top)
            top += high + _GAP
    return places, (len(columns) * (_WIDE + _APART) - _APART + 2 * _EDGE, whole)


def _layers(graph: LineageGraph) -> dict[str, int]:
    """Each node's column: one more than the rightmost of its parents'."""
    layer = dict.fromkeys((node.id for node in graph.nodes), 0)
    edges = [edge for edge in graph.edges if edge.parent in layer and edge.child in layer]
    for _ in range(len(layer)):  # as often as the longest way has steps; a circle, which cannot be, ends too
        moved = False
        for edge in edges:
            if layer[edge.child] <= layer[edge.parent] < len(layer):
                layer[edge.child], moved = layer[edge.parent] + 1, True
        if not moved:
            break
    return layer


def _arrow(
    start: tuple[int, int], end: tuple[int, int], lanes: Sequence[tuple[int, int]], kind: str, what: str
) -> Markup:
    x, y = start[0] + _WIDE, start[1] + _HIGH // 2
    tip = (end[0] - 7, end[1] + _HIGH // 2)
    way, half = f"M{x} {y}", _APART // 2
    for to_x, to_y in [*((at, top + _LANE // 2) for at, top in lanes), tip]:
        way += f" C{x + half} {y} {to_x - half} {to_y} {to_x} {to_y}"
        x, y = to_x, to_y
        if (to_x, to_y) != tip:
            x += _WIDE
            way += f" H{x}"
    path = Markup('<g><title>{}</title><path class="{}" d="{}"/><path class="arrow" d="M{} {} l-7 -4 v8 z"/></g>')
    return path.format(what, kind, way, end[0], tip[1])


def _box(node: Node, place: tuple[int, int], is_root: bool) -> Markup:
    is_gone = node.state in _GONE
    kind = "node" + (" root" if is_root else "") + (" gone" if is_gone else "")
    label = node.label or f"({node.state})"
    below = node.kind if node.method is None else f"{node.kind}, {node.method}"
    x, y = place
    box = Markup(
        '<g class="{}"><title>{}</title><rect x="{}" y="{}" width="{}" height="{}" rx="6"/>'
        '<text x="{}" y="{}">{}</text><text class="kind" x="{}" y="{}">{}</text></g>'
    ).format(
        kind,
        f"{label}: {below}",
        x,
        y,
        _WIDE,
        _HIGH,
        x + 10,
        y + 19,
        shortened(label, _LABEL),
        x + 10,
        y + 36,
        shortened(below, _LABEL + 2),
    )
    if is_gone:
        return box
    said = f"{label}: {below}" + (", this one" if is_root else "")
    return Markup('<a href="/page/lake/{}" aria-label="{}">{}</a>').format(node.id, said, box)
