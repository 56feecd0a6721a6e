"""A lineage as a drawing: what an entry came of to the left, what came of it to the right."""

from collections.abc import Mapping

from markupsafe import Markup

from interlace.protocol.lake import LineageGraph, Node
from interlace_server.page.svg import shortened

_WIDE, _HIGH = 178, 46
_APART, _GAP = 70, 14
_EDGE = 12
_LABEL = 24  # characters
_GONE = frozenset({"deleted", "hidden"})


def drawn(graph: LineageGraph, says: str) -> Markup:
    """Boxes, each a link to its entry's card and further to the right than its parents, with arrows between them.

    Dashed: what was recovered, and what is deleted or not the reader's to see.
    """
    places, size = _places(graph)
    wide, high = size
    parts = [
        Markup(
            '<svg class="drawing" role="group" width="{0}" height="{1}" viewBox="0 0 {0} {1}" aria-label="{2}">'
        ).format(wide, high, says)
    ]
    for edge in graph.edges:
        if edge.parent in places and edge.child in places:
            kind = "edge inferred" if edge.source == "inferred" else "edge"
            what = edge.relation if edge.method is None else f"{edge.relation}, {edge.method}"
            parts.append(_arrow(places[edge.parent], places[edge.child], kind, what))
    for node in graph.nodes:
        parts.append(_box(node, places[node.id], node.id == graph.root))
    return Markup("").join([*parts, Markup("</svg>")])


def _places(graph: LineageGraph) -> tuple[Mapping[str, tuple[int, int]], tuple[int, int]]:
    """The upper left corner of each node's box, and the size of it all."""
    layer = _layers(graph)
    columns = [[node for node in graph.nodes if layer[node.id] == one] for one in sorted(set(layer.values()))]
    tallest = max(map(len, columns), default=1)
    high = tallest * (_HIGH + _GAP) - _GAP + 2 * _EDGE
    places = {}
    for number, column in enumerate(columns):
        top = (high - len(column) * (_HIGH + _GAP) + _GAP) // 2
        for row, node in enumerate(sorted(column, key=lambda node: (node.created or 0.0, node.id))):
            places[node.id] = (_EDGE + number * (_WIDE + _APART), top + row * (_HIGH + _GAP))
    return places, (len(columns) * (_WIDE + _APART) - _APART + 2 * _EDGE, high)


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


def _arrow(start: tuple[int, int], end: tuple[int, int], kind: str, what: str) -> Markup:
    x, y, to_x, to_y = start[0] + _WIDE, start[1] + _HIGH // 2, end[0] - 7, end[1] + _HIGH // 2
    bend, back = x + _APART // 2, to_x - _APART // 2
    path = Markup('<g><title>{}</title><path class="{}" d="M{} {} C{} {} {} {} {} {}"/>')
    tip = Markup('<path class="arrow" d="M{} {} l-7 -4 v8 z"/></g>')
    return path.format(what, kind, x, y, bend, y, back, to_y, to_x, to_y) + tip.format(to_x + 7, to_y)


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
