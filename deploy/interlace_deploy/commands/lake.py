"""`interlace lake`: what a server knows of models and of what was made, over HTTP."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from interlace.protocol.lake import Edge, Entry, LineageGraph, plain
from interlace_deploy.commands.jobs import client_of
from interlace_deploy.problems import UsageProblem
from interlace_deploy.screen import show_table, utc

_LONGEST = 80  # characters of a value in a table


def search(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as server:
        page = server.lake.search(" ".join(map(_quoted, arguments.query)), limit=arguments.limit)
    if arguments.json:
        return _print(page)
    _show_entries(page.entries)
    if page.total > len(page.entries):
        print(f"{len(page.entries)} of {page.total}; --limit N shows more")
    return 0


def show(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as server:
        card = server.lake.card(arguments.entry)
    if arguments.json:
        return _print(card)
    print(f"{card.entry.ref}  ({card.entry.kind}, {card.entry.state})")
    rows = [
        (one.field, _short(one.value), f"{one.source}{' (stale)' if one.stale else ''}", one.evidence)
        for one in card.statements
    ]
    show_table(("what", "value", "says who", "evidence"), rows)
    if card.unknown:
        print(f"unknown: {', '.join(card.unknown)}")
    return 0


def lineage(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as server:
        graph = server.lake.lineage(arguments.entry, arguments.depth)
    if arguments.json:
        return _print(graph)
    print("\n".join(_tree(graph)))
    return 0


def versions(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as server:
        found = server.lake.versions(arguments.entry)
    if arguments.json:
        print(json.dumps([one.model_dump(mode="json") for one in found], indent=2))
        return 0
    _show_entries(found)
    return 0


def cite(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as server:
        cited = server.lake.cite(arguments.entry)
    print(cited.bibtex)
    if cited.call is not None:
        print(cited.call)
    for caveat in cited.caveats:
        print(f"interlace: {caveat}", file=sys.stderr)
    return 0


def tag(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as server:
        found = server.lake.tag(arguments.entry, arguments.tag)
    print(f"lake://{found.owner}/{found.name}:{found.tag} is {found.hash[:16]} now")
    return 0


def untag(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as server:
        server.lake.untag(arguments.entry, arguments.tag)
    return 0


def share(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as server:
        entry = server.lake.change(arguments.entry, visibility=arguments.visibility).entry
    print(f"{entry.ref} is {entry.visibility} now")
    return 0


def declare(arguments: argparse.Namespace) -> int:
    """Raises UsageProblem for what is no NAME=TEXT."""
    if wrong := [one for one in arguments.said if not one.partition("=")[0] or "=" not in one]:
        raise UsageProblem(f"{wrong[0]!r}: expected NAME=TEXT, such as license=mit; NAME= takes it back")
    said = {name: text or None for name, _, text in (one.partition("=") for one in arguments.said)}
    with client_of(arguments) as server:
        server.lake.change(arguments.entry, declared=said)
    return 0


def delete(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as server:
        for entry in arguments.entries:
            server.lake.delete(entry)
            print(f"{entry} is gone; a tombstone stays in lineage")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    a, b = arguments.entries
    with client_of(arguments) as server:
        found = server.lake.compare(a, b)
        result = server.lake.measure(a, b, follow=False) if arguments.measure else None
    if arguments.json:
        return _print(found if result is None else result)
    show_table(
        ("what", found.a.name, found.b.name), [(one.field, _short(one.a), _short(one.b)) for one in found.differences]
    )
    for node in found.ancestors:
        print(f"both came of {node.label or node.id}")
    for metric in result.metrics if result is not None else ():
        print(f"{metric.name} {metric.value:.4g} {metric.unit}")
    for said in found.measured if result is None else ():
        print(f"{said.field} {_short(said.value)} ({said.evidence})")
    return 0


def import_(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.source)
    with client_of(arguments) as server:
        if folder.is_dir():
            found = server.lake.import_folder(folder, model=arguments.model)
        else:
            found = server.lake.import_repo(arguments.source, model=arguments.model)
    print(found.ref)
    return 0


def export(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as server:
        print(server.lake.export_folder(arguments.entry, arguments.folder))
    return 0


def _tree(graph: LineageGraph) -> list[str]:
    """A graph as lines: what it came of above, what came of it below, each thing once."""
    nodes = {node.id: node for node in graph.nodes}

    def line(node_id: str, edge: Edge | None) -> str:
        node = nodes[node_id]
        how = f" [{edge.relation}, {edge.source}{f', {edge.method}' if edge.method else ''}]" if edge else ""
        return f"{node.label or f'({node.state})'}  {node.kind} {node.id}{how}"

    lines: list[str] = []
    seen = {graph.root}

    def walk(at: str, indent: int, up: bool) -> None:
        for edge in graph.edges:
            near, far = (edge.child, edge.parent) if up else (edge.parent, edge.child)
            if near == at and far not in seen:
                seen.add(far)
                lines.append(f"{'  ' * indent}{'<' if up else '>'} {line(far, edge)}")
                walk(far, indent + 1, up)

    lines.append(line(graph.root, None))
    walk(graph.root, 1, True)
    walk(graph.root, 1, False)
    if graph.truncated:
        lines.append("there is more: --depth N")
    return lines


def _show_entries(entries: tuple[Entry, ...] | list[Entry]) -> None:
    rows = [
        (
            one.id,
            one.kind,
            one.ref,
            one.base or "",
            one.method or "",
            one.state if one.visibility is None else one.visibility,
            utc(one.created),
        )
        for one in entries
    ]
    show_table(("id", "kind", "name", "for", "made by", "seen by", "since, UTC"), rows)


def _quoted(word: str) -> str:
    """A word of the command line as one of a query."""
    return f'"{word}"' if " " in word and '"' not in word else word


def _short(value: Any) -> str:
    text = plain(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _print(view: BaseModel) -> int:
    print(view.model_dump_json(indent=2))
    return 0
