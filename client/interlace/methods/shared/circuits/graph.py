"""A circuit as a picture: nodes by layer and position, effect as colour, edge weight as width. Standard library only.

`svg` stands alone, with attributes and no style; `html` is one file that can be clicked and needs no network; `json` is
node-link data, which `networkx.node_link_graph`, d3 and Cytoscape read.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

METRIC_ID = "m"
#: Sites of one block, in the order of a forward.
_MIXER = ("mixer_in.x", "mixer_in.gate", "mixer_act", "mixer_out")
_ORDER = ("embed", *_MIXER, "head", "attn_out", "mlp_in", "mlp_act", "mlp_out", "resid_post")
_RADIUS, _STEP, _MARGIN, _LEFT, _TOP = 9, 24, 16, 120, 56  # pixels
_WIDE, _NARROW = 24, 6  # nodes in a line of a cell
_POSITIVE, _NEGATIVE = (33, 102, 172), (178, 24, 43)


@dataclass(frozen=True)
class Dot:
    """One node of the picture."""

    id: str
    #: `SITE.LAYER`
    place: str
    site: str
    layer: int | None
    position: int | None
    token: str
    #: None for the error.
    feature: int | None
    effect: float
    #: What somebody calls it.
    label: str


@dataclass(frozen=True)
class Line:
    """One edge: ids of its nodes, `METRIC_ID` for the metric."""

    source: str
    target: str
    weight: float


@dataclass(frozen=True)
class Graph:
    """Nodes, the largest effects first, and edges, the largest weights first."""

    dots: tuple[Dot, ...]
    lines: tuple[Line, ...]
    metric: str

    @classmethod
    def of_tables(
        cls,
        nodes: Iterable[Sequence[Any]],
        edges: Iterable[Sequence[Any]],
        tokens: Sequence[str] = (),
        metric: str = "m",
        labels: Mapping[str, str] | None = None,
    ) -> "Graph":
        """Of rows (site, layer, position, feature, effect) and (source, target, weight), as results have them.

        ``labels``: what nodes are called, by id: `PLACE/POSITION/FEATURE`, such as `resid_post.3/5/812`; `*` for all
        positions, `error` for the error.
        """
        dots = []
        for site, layer, position, feature, effect in nodes:
            place = site if layer is None else f"{site}.{layer}"
            number = None if feature < 0 else feature
            token = "" if position is None or position >= len(tokens) else tokens[position]
            name = f"{place}/{'*' if position is None else position}/{'error' if number is None else number}"
            dots.append(Dot(name, place, site, layer, position, token, number, effect, (labels or {}).get(name, "")))
        lines = [
            Line(dots[source].id, METRIC_ID if target < 0 else dots[target].id, weight)
            for source, target, weight in edges
        ]
        ordered = sorted(dots, key=lambda one: -abs(one.effect))
        return cls(tuple(ordered), tuple(sorted(lines, key=lambda one: -abs(one.weight))), metric)

    def largest(self, nodes: int, edges: int) -> "Graph":
        """The same with so many of each; edges between nodes that are left."""
        dots = self.dots[:nodes]
        ids = {METRIC_ID, *(one.id for one in dots)}
        lines = [one for one in self.lines if one.source in ids and one.target in ids]
        return Graph(dots, tuple(lines[:edges]), self.metric)

    def json(self) -> str:
        """Node-link data; `networkx.node_link_graph(json.loads(...), edges="edges")` reads it."""
        nodes: list[dict[str, Any]] = [
            {"id": one.id, "kind": "error" if one.feature is None else "feature", **_fields(one)} for one in self.dots
        ]
        nodes.append({"id": METRIC_ID, "kind": "metric", "label": self.metric})
        edges = [{"source": one.source, "target": one.target, "weight": one.weight} for one in self.lines]
        whole = {"directed": True, "multigraph": False, "graph": {"metric": self.metric}}
        return json.dumps({**whole, "nodes": nodes, "edges": edges}, indent=1, allow_nan=False)

    def svg(self, *, most_nodes: int = 120, most_edges: int = 300) -> str:
        """A picture of the largest."""
        return _drawn(self.largest(most_nodes, most_edges))

    def html(self, *, title: str = "Circuit", most_nodes: int = 300, most_edges: int = 1000) -> str:
        """One file: the picture, sliders for the least effect and weight, what a node is and is joined to, a table."""
        some = self.largest(most_nodes, most_edges)
        frame = files(__package__).joinpath("graph.html").read_text()
        rows = "".join(
            f'<tr data-id="{escape(one.id)}"><td>{escape(one.place)}</td><td>{_at(one)}</td><td>{_feature(one)}</td>'
            f"<td>{one.effect:+.4g}</td><td>{escape(one.label)}</td></tr>"
            for one in some.dots
        )
        parts = {
            "TITLE": escape(title),
            "METRIC": escape(self.metric),
            "SVG": _drawn(some),
            "ROWS": rows,
            "DATA": some.json().replace("<", "\\u003c"),
        }
        for name, text in parts.items():
            frame = frame.replace(f"<!--{name}-->", text)  # none can be in a text: all `<` there are escaped
        return frame


def _fields(dot: Dot) -> dict[str, Any]:
    names = ("place", "site", "layer", "position", "token", "feature", "effect", "label")
    return {name: getattr(dot, name) for name in names}


def _feature(dot: Dot) -> str:
    return "error" if dot.feature is None else str(dot.feature)


def _at(dot: Dot) -> str:
    return "all" if dot.position is None else escape(f"{dot.position} {dot.token}".strip())


def _rank(dot: Dot) -> tuple[int, int, str]:
    name = dot.site.partition(":")[0]
    return -1 if dot.layer is None else dot.layer, _ORDER.index(name) if name in _ORDER else len(_ORDER), dot.site


def place_order(dots: Sequence[Dot]) -> list[str]:
    """The places of nodes, as a forward comes by them."""
    ranks = {one.place: _rank(one) for one in dots}
    return sorted(ranks, key=ranks.__getitem__)


def _drawn(graph: Graph) -> str:
    """Rows are places, the first at the bottom, the metric at the top; columns are positions."""
    places = place_order(graph.dots)
    columns = sorted({one.position for one in graph.dots}, key=lambda one: -1 if one is None else one)
    in_line = _WIDE if len(columns) < 2 else _NARROW
    cells: dict[tuple[str, int | None], list[Dot]] = {}
    for one in graph.dots:
        cells.setdefault((one.place, one.position), []).append(one)
    widths = [
        max(2, *(min(in_line, len(own)) for (_, at), own in cells.items() if at == column)) * _STEP + _MARGIN
        for column in columns
    ]
    heights = {
        place: max(-(-len(own) // in_line) for (at, _), own in cells.items() if at == place) * _STEP + _MARGIN
        for place in places
    }
    width, height = _LEFT + sum(widths) + _MARGIN, _TOP + sum(heights.values()) + 2 * _STEP
    spots = {METRIC_ID: (_LEFT + sum(widths) / 2, float(_TOP - 24))}
    texts, top = [], float(_TOP)
    for place in reversed(places):
        texts.append(_text(8, top + heights[place] / 2, place))
        left = float(_LEFT)
        for column, room in zip(columns, widths, strict=True):
            for number, one in enumerate(cells.get((place, column), [])):
                x = left + (number % in_line + 0.5) * _STEP
                spots[one.id] = x, top + (number // in_line + 0.5) * _STEP + _MARGIN / 2
            left += room
        top += heights[place]
        texts.append(f'<line x1="{_LEFT - 8}" x2="{width}" y1="{top:g}" y2="{top:g}" stroke="#e4e4e4"/>')
    texts += _columns(graph, columns, widths, top + 18)
    body = [*texts, *_edges(graph, spots), *_nodes(graph, spots)]
    said = f"A circuit for {graph.metric}: {len(graph.dots)} nodes, {len(graph.lines)} edges"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" font-size="11" role="img" aria-label="{escape(said)}">'
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>{"".join(body)}</svg>'
    )


def _columns(graph: Graph, columns: Sequence[int | None], widths: Sequence[int], y: float) -> list[str]:
    tokens = {one.position: one.token for one in graph.dots}
    found, left = [], float(_LEFT)
    for column, room in zip(columns, widths, strict=True):
        name = "all positions" if column is None else tokens[column].strip()[:12] or str(column)
        found.append(_text(left, y, name))
        left += room
    return found


def _edges(graph: Graph, spots: Mapping[str, tuple[float, float]]) -> list[str]:
    most = max((abs(one.weight) for one in graph.lines), default=1.0) or 1.0
    found = []
    for one in reversed(graph.lines):  # the largest on top
        (x, y), (to_x, to_y) = spots[one.source], spots[one.target]
        share = abs(one.weight) / most
        bend = (y - to_y) * 0.4
        found.append(
            f'<path d="M{x:g} {y:g}C{x:g} {y - bend:g} {to_x:g} {to_y + bend:g} {to_x:g} {to_y:g}" fill="none" '
            f'stroke="{_colour(one.weight, most, 0.35)}" stroke-width="{0.4 + 4.6 * share:.2f}" '
            f'stroke-opacity="{0.25 + 0.6 * share:.2f}" data-source="{escape(one.source)}" '
            f'data-target="{escape(one.target)}" data-weight="{one.weight:.6g}"><title>{escape(one.source)} to '
            f"{escape(one.target)}: {one.weight:+.4g}</title></path>"
        )
    return found


def _nodes(graph: Graph, spots: Mapping[str, tuple[float, float]]) -> list[str]:
    most = max((abs(one.effect) for one in graph.dots), default=1.0) or 1.0
    x, y = spots[METRIC_ID]
    found = [
        f'<g data-id="{METRIC_ID}"><rect x="{x - 40:g}" y="{y - 11:g}" width="80" height="20" rx="4" fill="#333333"/>'
        f'<text x="{x:g}" y="{y + 3:g}" text-anchor="middle" fill="#ffffff">{escape(graph.metric[:14])}</text></g>'
    ]
    for one in graph.dots:
        x, y = spots[one.id]
        fill = f'fill="{_colour(one.effect, most, 0.0)}" stroke="#444444" stroke-width="0.8"'
        said = f"{one.place} {_feature(one)} at {_at(one)}: {one.effect:+.4g}"
        shape = f'<circle cx="{x:g}" cy="{y:g}" r="{_RADIUS}" {fill}/>'
        if one.feature is None:  # an error
            side = _RADIUS * 1.6
            shape = f'<rect x="{x - side / 2:g}" y="{y - side / 2:g}" width="{side:g}" height="{side:g}" {fill}/>'
        label = f" ({escape(one.label)})" if one.label else ""
        found.append(
            f'<g data-id="{escape(one.id)}" data-effect="{one.effect:.6g}">{shape}<title>{said}{label}</title></g>'
        )
    return found


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:g}" y="{y + 4:g}" fill="#333333">{escape(text)}</text>'


def _colour(value: float, most: float, least: float) -> str:
    """White at 0, or ``least`` of the way from it; blue above, red below."""
    share = least + (1 - least) * min(1.0, abs(value) / most)
    parts = _POSITIVE if value >= 0 else _NEGATIVE
    return "#" + "".join(f"{round(255 + share * (one - 255)):02x}" for one in parts)
