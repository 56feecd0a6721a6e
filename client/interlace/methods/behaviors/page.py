"""The report of `behaviors.cluster` as one HTML page. Whatever comes from texts is escaped; there is no script."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape

from interlace.methods.behaviors.spec import Cluster, ClusterResult, Node, Sample
from interlace.methods.shared.features.described import Context, Description

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
nav a { display: inline-block; margin: 0 .6rem .3rem 0; }
code, .line { font-family: ui-monospace, monospace; font-size: 13px; white-space: pre-wrap; }
.line { border-left: 3px solid #ddd; margin: .15rem 0; padding-left: .5rem; }
.token { background: #bfe3c0; border-radius: 2px; } .quiet { color: #595959; }
table { border-collapse: collapse; } td, th { padding: .1rem .6rem .1rem 0; text-align: left; vertical-align: top; }
summary { cursor: pointer; } .wide { overflow-x: auto; }
"""


def page(result: ClusterResult) -> str:
    """Clusters one under the other: exemplars, then the features that carry them with their contexts."""
    shown = {
        (one.site if one.layer is None else f"{one.site}.{one.layer}", one.feature): one for one in result.features
    }
    links = "".join(f'<a href="#c{one.number}">{one.number}: {_tokens(one, 2)}</a>' for one in result.clusters)
    told = "".join(
        f"<tr><td>{escape(one.name)} {escape(one.split)}</td><td>{one.value:.3g}</td></tr>" for one in result.metrics
    )
    said = "".join(f"<p>{escape(one)}</p>" for one in result.warnings)
    body = "".join(_cluster(one, shown) for one in result.clusters)
    count = sum(one.size for one in result.clusters)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Behaviours</title><style>{_STYLE}</style>'
        f"</head><body><main><h1>{len(result.clusters)} clusters of {count:,} samples</h1>"
        "<p>A sample is a token that the model foresees (marked) and what comes before it.</p>"
        f"{said}<table>{told}</table><nav>{links}</nav>{body}</main></body></html>\n"
    )


def _cluster(one: Cluster, shown: Mapping[tuple[str, int], Description]) -> str:
    lines = "".join(_sample(sample) for sample in one.exemplars)
    nodes = "".join(_node(node, shown.get((node.place, node.feature))) for node in one.nodes)
    circuit = f"<h3>What carries it</h3>{_circuit(one)}{nodes}" if nodes else ""
    return (
        f'<section id="c{one.number}"><h2>Cluster {one.number}: {_tokens(one, 4)}</h2>'
        f'<p class="quiet">{one.size} samples, {one.loss:.3f} nats on average</p>{lines}{circuit}</section>'
    )


def _circuit(one: Cluster) -> str:
    """Its picture, its artifact's name, and the graph as a file: a link that holds what it leads to."""
    graph = one.graph()
    data = b64encode(graph.json().encode()).decode()
    file = f"cluster-{one.number}.json"
    return (
        f"<details><summary>The circuit of {len(one.nodes)} features and {len(one.edges)} edges</summary>"
        f'<div class="wide">{graph.svg()}</div></details>'
        f'<p class="quiet">Kept as <code>{escape(one.circuit or "-")}</code>; '
        f'<a download="{file}" href="data:application/json;base64,{data}">what is drawn, as JSON</a></p>'
    )


def _tokens(one: Cluster, most: int) -> str:
    return ", ".join(f"<code>{escape(repr(token)[1:-1])}</code> ({count})" for token, count in one.tokens[:most])


def _sample(sample: Sample) -> str:
    before = escape("".join(sample.before))
    return f'<div class="line">{before}<span class="token">{escape(sample.token)}</span></div>'


def _node(node: Node, feature: Description | None) -> str:
    name = f"{escape(node.place)}, feature {node.feature}: {node.effect:+.3f} nats"
    if feature is None:
        return f"<p>{name}</p>"
    lines = "".join(_context(one, feature.most) for one in feature.contexts)
    raised = ", ".join(f"<code>{escape(repr(token)[1:-1])}</code>" for token, _ in feature.promoted[:6])
    told = f"on at {feature.fires:.1%} of tokens; raises {raised or '-'}"
    return f'<details><summary>{name} <span class="quiet">{told}</span></summary>{lines}</details>'


def _context(one: Context, most: float) -> str:
    shades = [max(0.0, min(1.0, value / (most or 1.0))) for value in one.activations]
    words = "".join(
        f'<span style="background: rgba(255, 140, 0, {shade:.2f})">{escape(word)}</span>'
        for word, shade in zip(one.tokens, shades, strict=True)
    )
    return f'<div class="line">{words}</div>'
