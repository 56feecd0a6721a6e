"""What is said of an entry, each statement with who says so; how it is cited; and two of them side by side."""

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from interlace.methods import catalogue
from interlace.protocol.artifact import AdapterRef, Artifact, Lineage
from interlace.protocol.errors import InvalidRequest
from interlace.protocol.lake import HOSTED, Card, Citation, Comparison, Difference, Entry, Measured, Statement
from interlace_state.lake.graph import Snapshot, Viewer
from interlace_state.lake.records import ModelRecord, RunRecord, model_id

#: What a reader of a card looks for: named as unknown where nobody says it.
USUAL = ("description", "license", "intended_use", "base", "method", "params", "seed", "data_sha256", "metrics")
_MOST_MEASURED = 100
_MOST_NEAR = 50
_COMPARED = "lake.compare"
#: Kinds of which a method's figures are, where it makes them, and not of what it was given.
_MADE = frozenset({"peft", "diffusers-lora", "edit", "weights", "sae", "probe", "circuit", "sketch"})
#: Methods whose figures are of all that they were given together.
_OF_ALL = ("lake.recover", "lake.attribute", "lake.attribute_images")


def card(snapshot: Snapshot, viewer: Viewer, entry: Entry) -> Card:
    """All that is known of an entry."""
    said = [*_recorded(snapshot, viewer, entry), *measured(snapshot, viewer, entry)]
    fields = {one.field.partition(":")[0] for one in said}
    above = [edge.parent for edge in snapshot.above.get(entry.id, ()) if snapshot.shows(viewer, edge)]
    below = [edge.child for edge in snapshot.below.get(entry.id, ()) if snapshot.shows(viewer, edge)]
    return Card(
        entry=entry,
        statements=tuple(said),
        unknown=tuple(one for one in USUAL if one not in fields and not (one == "base" and entry.kind == "model")),
        versions=tuple(
            snapshot.entries[one] for one in snapshot.versions(entry)[::-1] if snapshot.visible(viewer, one)
        )[:_MOST_NEAR],
        parents=tuple(snapshot.node(viewer, one, -1) for one in dict.fromkeys(above)),
        children=tuple(snapshot.node(viewer, one, 1) for one in list(dict.fromkeys(below))[:_MOST_NEAR]),
    )


def _recorded(snapshot: Snapshot, viewer: Viewer, entry: Entry) -> Iterator[Statement]:
    """What manifests and records say, and what follows from them."""
    artifact = snapshot.artifacts.get(entry.id)
    if artifact is None:
        yield from _of_model(snapshot.models[entry.id])
    else:
        yield from _of_artifact(artifact)
        if "license" not in artifact.declared:
            yield from _inherited(snapshot, viewer, artifact)
    for edge in snapshot.above.get(entry.id, ()):
        if edge.relation == "recovered" and snapshot.shows(viewer, edge):
            value = {"parent": edge.parent, "margin": edge.margin}
            yield Statement(field="parent", value=value, source="inferred", evidence=f"job {edge.job}", at=edge.at)


def _of_model(record: ModelRecord) -> Iterator[Statement]:
    seen = partial(Statement, source="recorded", evidence="configuration", at=record.first_seen)
    values = {
        "repo_id": record.key.repo_id,
        "revision": record.key.revision,
        "commit": record.commit,
        "task": record.key.task,
        "dtype": record.dtype,
        "n_params": record.n_params,
        "size_bytes": record.size_bytes,
    }
    for name, value in values.items():
        if value is not None:
            yield seen(field=name, value=value)
    for name, value in record.facts.items():
        yield Statement(field=name, value=value, source="declared", evidence="config.json", at=record.first_seen)


def _of_artifact(one: Artifact) -> Iterator[Statement]:
    recorded = partial(Statement, source="recorded", evidence="manifest", at=one.created)
    declared = partial(Statement, source="declared", evidence="manifest", at=one.created)
    by_maker = declared if one.lineage is None else recorded
    for name in ("kind", "hash", "n_params", "size"):
        yield recorded(field=name, value=getattr(one, name))
    if one.name:
        yield declared(field="name", value=one.name)
    if one.base is not None:
        yield by_maker(field="base", value={"repo_id": one.base.repo_id, "commit": one.base.commit})
    for name, value in one.facts.items():
        yield by_maker(field=f"facts:{name}", value=value)
    if one.lineage is not None:
        yield from _of_lineage(one.lineage, one.created)
    for name, text in one.declared.items():
        yield Statement(field=name, value=text, source="declared", evidence=f"owner {one.tenant}")


def _of_lineage(lineage: Lineage, at: float) -> Iterator[Statement]:
    recorded = partial(Statement, source="recorded", evidence=f"job {lineage.job}", at=at)
    for name in ("method", "seed", "params", "params_sha256", "parents", "edits", "data_sha256", "libraries"):
        value = getattr(lineage, name)
        if value not in (None, (), {}, ""):
            yield recorded(field=name, value=value)
    spec = catalogue().get(lineage.method)
    for cited in spec.cites if spec else ():
        text = f"{cited.authors} ({cited.year}). {cited.title}. {cited.where}"
        yield Statement(field="published_as", value=text, source="recorded", evidence=f"method {lineage.method}")


def _inherited(snapshot: Snapshot, viewer: Viewer, one: Artifact) -> Iterator[Statement]:
    """A licence that all its parents among artifacts declare, and none of which says another."""
    parents = [
        snapshot.artifacts[edge.parent]
        for edge in snapshot.above.get(one.id, ())
        if edge.parent in snapshot.artifacts and snapshot.visible(viewer, edge.parent)
    ]
    said = {parent.declared.get("license") for parent in parents}
    if len(said) == 1 and (license_ := said.pop()) is not None:
        names = ", ".join(f"artifact:{parent.id}" for parent in parents)
        yield Statement(field="license", value=license_, source="inferred", evidence=f"declared by {names}")


def measured(snapshot: Snapshot, viewer: Viewer, entry: Entry) -> list[Statement]:
    """What jobs have measured of it, the newest first: the job that made it, and those that were given it."""
    found: list[Statement] = []
    artifact = snapshot.artifacts.get(entry.id)
    own = artifact.lineage if artifact else None
    if artifact is not None and own is not None:
        found += [_number(own.method, one, own.job, artifact.created) for one in own.metrics]
    runs = [one for one in snapshot.runs.values() if viewer.admin or one.tenant == viewer.tenant]
    for run in sorted(runs, key=lambda one: -one.ended):
        if own is not None and run.id == own.job:
            continue
        about = _about(snapshot, run, entry)
        if about is not None:
            found += [_number(run.lineage.method, one, run.id, run.ended, stale=about) for one in run.lineage.metrics]
    return found[:_MOST_MEASURED]


def _about(snapshot: Snapshot, run: RunRecord, entry: Entry) -> bool | None:
    """Whether what a run has measured of an entry is of other contents than now; None where it is about another."""
    lineage = run.lineage
    spec = catalogue().get(lineage.method)
    if lineage.method.partition("@")[0] in _OF_ALL or (spec is not None and _MADE & set(spec.makes)):
        return None
    if entry.kind == "model":
        record = snapshot.models[entry.id]
        if lineage.parents or lineage.model != record.key.canonical:
            return None  # with artifacts at hand, it is about these
        return lineage.commit != record.commit
    for text in lineage.parents:
        try:
            ref = AdapterRef.parse(text, "parents")
        except InvalidRequest:
            continue
        if ref.id == entry.id:
            return not entry.hash.startswith(ref.hash)
    return None


def _number(method: str, one: Measured, job: str, at: float, *, stale: bool = False) -> Statement:
    name = f"metrics:{method.partition('@')[0]}:{one.name}" + (f":{one.split}" if one.split else "")
    value = one.model_dump(exclude_none=True, exclude={"name", "split"})
    return Statement(field=name, value=value, source="measured", evidence=f"job {job}", at=at, stale=stale)


def cite(snapshot: Snapshot, entry: Entry, url: str) -> Citation:
    """BibTeX with the hash, and the call that makes it again from what it was made of."""
    artifact = snapshot.artifacts.get(entry.id)
    lineage = artifact.lineage if artifact else None
    year, day = (time.strftime(form, time.gmtime(entry.created)) for form in ("%Y", "%Y-%m-%d"))
    note = [f"Contents {entry.hash}", f"made {day}"]
    if entry.base is not None:
        note.append(f"for {entry.base}")
    if lineage is not None:
        note.append(f"by {lineage.method} at commit {lineage.commit} of its model, job {lineage.job}")
    author = entry.name.rpartition("/")[0] if entry.kind == "model" else entry.owner
    lines = (
        f"@misc{{{entry.owner}-{entry.id[:8]},",
        f"  title        = {{{_tex(entry.name)} (version {entry.version})}},",
        f"  author       = {{{{{_tex(author or entry.owner)}}}}},",
        f"  year         = {{{year}}},",
        f"  howpublished = {{\\url{{{entry.ref}}}}},",
        f"  url          = {{{url}/v1/lake/{entry.id}}},",
        f"  urldate      = {{{time.strftime('%Y-%m-%d', time.gmtime())}}},",
        f"  note         = {{{_tex('; '.join(note))}}}",
        "}",
    )
    call, caveats = _call(snapshot, entry, lineage, url)
    return Citation(ref=entry.ref, bibtex="\n".join(lines) + "\n", call=call, caveats=tuple(caveats))


def _tex(text: str) -> str:
    escaped = text.replace("\\", "\\textbackslash ")
    for sign in "{}#$%&_":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped


def _call(snapshot: Snapshot, entry: Entry, lineage: Lineage | None, url: str) -> tuple[str | None, list[str]]:
    """The call, and what keeps it from being exact."""
    if entry.owner == HOSTED:
        record = snapshot.models[entry.id]
        return f"nnsight.{record.key.wrapper}({record.key.repo_id!r}, revision={record.commit!r})", []
    if lineage is None:
        return None, ["It was uploaded: nothing was recorded of how it was made."]
    if lineage.params is None:
        return None, ["Its parameters were too long to keep; their digest is `params_sha256`."]
    caveats = []
    model = model_id(lineage.model, lineage.commit)
    if model not in snapshot.hosted:
        caveats.append(f"The model that it was made on is hosted no more at commit {lineage.commit}.")
    for text in lineage.parents:
        ref = AdapterRef.parse(text, "parents")
        if ref.id not in snapshot.artifacts:
            caveats.append(f"{text} was deleted, and it was made of that.")
    if lineage.device and not lineage.device.startswith("cpu"):
        caveats.append(f"It was made on {lineage.device}, where equal calls may differ in the last bits.")
    params = json.dumps(lineage.params, ensure_ascii=False)
    call = (
        "import json\n\nimport interlace\n\n"
        f"client = interlace.connect({url!r})\n"
        "result = client.run(\n"
        f"    {lineage.method!r},\n"
        f"    model={lineage.model!r},  # commit {lineage.commit}\n"
        f"    params=json.loads({params!r}),\n"
        f"    edits={list(lineage.edits)!r},\n"
        f"    seed={lineage.seed or 0},\n"
        ")\n"
        f"assert any(one.endswith('@{entry.hash}') for one in result.artifacts)\n"
    )
    return call, caveats


def compare(snapshot: Snapshot, viewer: Viewer, a: Entry, b: Entry) -> Comparison:
    """Two entries by record: where statements differ, what both came of, what jobs have measured between them."""
    cards = [_fields(snapshot, viewer, one) for one in (a, b)]
    names = dict.fromkeys((*cards[0], *cards[1]))
    differing = [Difference(field=one, a=cards[0].get(one), b=cards[1].get(one)) for one in names]
    above = [{one.id: 0, **snapshot.walk(viewer, one.id, up=True)} for one in (a, b)]
    both = {one: above[0][one] + above[1][one] for one in above[0].keys() & above[1].keys()}
    nearest = [one for one, steps in both.items() if steps == min(both.values())]
    return Comparison(
        a=a,
        b=b,
        differences=tuple(one for one in differing if one.a != one.b),
        ancestors=tuple(snapshot.node(viewer, one) for one in sorted(nearest)),
        measured=tuple(_between(snapshot, viewer, a, b)),
        request=_request(snapshot, viewer, a, b),
    )


def _fields(snapshot: Snapshot, viewer: Viewer, entry: Entry) -> dict[str, Any]:
    """The newest statement of each field."""
    found: dict[str, Any] = {}
    for one in card(snapshot, viewer, entry).statements:
        found.setdefault(one.field, one.value)
    return found


def _between(snapshot: Snapshot, viewer: Viewer, a: Entry, b: Entry) -> Iterator[Statement]:
    for run in sorted(snapshot.runs.values(), key=lambda one: -one.ended):
        lineage = run.lineage
        if not (viewer.admin or run.tenant == viewer.tenant) or lineage.method.partition("@")[0] != _COMPARED:
            continue
        given = {text.removeprefix("artifact:").partition("@")[0] for text in lineage.parents}
        given.add(model_id(lineage.model, lineage.commit))
        if {a.id, b.id} <= given:
            yield from (_number(lineage.method, one, run.id, run.ended) for one in lineage.metrics)


def _request(snapshot: Snapshot, viewer: Viewer, a: Entry, b: Entry) -> dict[str, Any] | None:
    """What measures it, on the model that one of them is, or that both were made for."""
    models = [one for one in (a, b) if one.kind == "model"]
    others = [one for one in (a, b) if one.kind != "model"]
    if len(models) == 2:
        # Of one of two hosted models a sketch must be at hand, for no process holds both.
        for on, away in ((a, b), (b, a)):
            for edge in snapshot.below.get(away.id, ()):
                made = snapshot.artifacts.get(edge.child)
                if made is not None and made.kind == "sketch" and viewer.sees(made):
                    return _body(snapshot, on.id, {"other": made.ref})
        return None
    refs = [snapshot.artifacts[one.id].ref for one in others]
    if any(one.kind not in ("weights", "sketch", "peft", "edit") for one in others):
        return None
    if models:
        return _body(snapshot, models[0].id, {"other": refs[0]})
    bases = [snapshot.model_of(base) for one in others if (base := snapshot.artifacts[one.id].base) is not None]
    if len(bases) < 2 or bases[0] != bases[1] or bases[0] is None:
        return None
    return _body(snapshot, bases[0], {"one": refs[0], "other": refs[1]})


def _body(snapshot: Snapshot, model: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if model not in snapshot.hosted:
        return None
    return {"method": _COMPARED, "model": snapshot.models[model].key.slug, "params": params}
