"""What came of what: the lake at one moment, its edges, and walks along them."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

from interlace.protocol.adapter import fits
from interlace.protocol.artifact import AdapterRef, Artifact, Base
from interlace.protocol.errors import InvalidRequest
from interlace.protocol.lake import HOSTED, Edge, Entry, LakeRef, LineageGraph, Node, Tag, slug
from interlace_state.lake.records import ModelRecord, RunRecord, Tombstone, model_id

_MODEL = "model"
MOST_NODES = 500


@dataclass(frozen=True)
class Viewer:
    """Whoever looks into the lake."""

    tenant: str
    #: The ids of its key and of those whose place that has taken; None where no key is needed.
    keys: frozenset[str] | None = None
    #: Sees every tenant's entries; files are not part of that.
    admin: bool = False
    #: Repo ids of hosted models that it reaches; None: all.
    models: tuple[str, ...] | None = None

    def sees(self, one: Artifact | Tombstone) -> bool:
        if self.admin or one.visibility == "public":
            return True
        if one.tenant != self.tenant:
            return False
        return one.visibility == "tenant" or self.keys is None or one.creator is None or one.creator in self.keys

    def sees_model(self, record: ModelRecord) -> bool:
        return self.models is None or record.key.repo_id in self.models


@dataclass(frozen=True)
class Snapshot:
    """All that the lake knows, at one moment."""

    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    models: Mapping[str, ModelRecord] = field(default_factory=dict)
    runs: Mapping[str, RunRecord] = field(default_factory=dict)
    tombstones: Mapping[str, Tombstone] = field(default_factory=dict)
    tags: Mapping[str, Tag] = field(default_factory=dict)
    #: Ids of those models that are hosted now.
    hosted: frozenset[str] = frozenset()

    def prepare(self) -> None:
        """Work out all that is worked out once, in whatever thread this is."""
        for name in ("entries", "above", "below"):
            getattr(self, name)

    def visible(self, viewer: Viewer, entry_id: str) -> bool:
        artifact = self.artifacts.get(entry_id) or self.tombstones.get(entry_id)
        if artifact is not None:
            return viewer.sees(artifact)
        record = self.models.get(entry_id)
        return record is not None and viewer.sees_model(record)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """What lives, as it is shown."""
        return {
            **{one.id: self._model(one) for one in self.models.values()},
            **{one.id: self._artifact(one) for one in self.artifacts.values()},
        }

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge once; what is recorded goes before what was found in weights."""
        found: dict[tuple[str, str], Edge] = {}
        kept: list[Artifact | Tombstone] = [*self.artifacts.values(), *self.tombstones.values()]
        for one in kept:
            for edge in self._edges_of(one):
                found.setdefault((edge.parent, edge.child), edge)
        for run in self.runs.values():
            for edge in self._recovered(run):
                found.setdefault((edge.parent, edge.child), edge)
        return tuple(found.values())

    @cached_property
    def above(self) -> dict[str, list[Edge]]:
        """Id -> the edges to it."""
        found: dict[str, list[Edge]] = {}
        for edge in self.edges:
            found.setdefault(edge.child, []).append(edge)
        return found

    @cached_property
    def below(self) -> dict[str, list[Edge]]:
        """Id -> the edges from it."""
        found: dict[str, list[Edge]] = {}
        for edge in self.edges:
            found.setdefault(edge.parent, []).append(edge)
        return found

    @cached_property
    def _versions(self) -> dict[tuple[str, str], list[str]]:
        """Owner and name -> ids, the oldest first."""
        found: dict[tuple[str, str], list[tuple[float, str]]] = {}
        for artifact in self.artifacts.values():
            found.setdefault((artifact.tenant, slug(artifact.name)), []).append((artifact.created, artifact.id))
        for record in self.models.values():
            found.setdefault((HOSTED, slug(record.key.repo_id)), []).append((record.first_seen, record.id))
        return {name: [one for _, one in sorted(listed)] for name, listed in found.items()}

    @cached_property
    def _tags_of(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for tag in self.tags.values():
            found.setdefault(tag.id, []).append(tag.tag)
        return {entry_id: tuple(sorted(tags)) for entry_id, tags in found.items()}

    def versions(self, entry: Entry) -> list[str]:
        """Ids of the same owner and name, the oldest first."""
        return self._versions.get((entry.owner, slug(entry.name)), [])

    def named(self, ref: LakeRef) -> list[str]:
        """The ids that a name may mean, the best first."""
        if ref.tag:
            tag = self.tags.get(f"{ref.owner}/{ref.name}/{ref.tag}")
            return [] if tag is None else [tag.id]
        found = self._versions.get((ref.owner, ref.name), [])[::-1]
        return [one for one in found if self.entries[one].hash.startswith(ref.hash)]

    def model_of(self, base: Base) -> str | None:
        """The id of the model that an artifact says it was made for, as far as it can be told."""
        if base.key is not None and base.commit is not None:
            return model_id(base.key, base.commit)
        known = sorted(self.models.values(), key=lambda one: (one.id not in self.hosted, -one.first_seen))
        return next((one.id for one in known if fits(base.repo_id, one.key.repo_id)), None)

    def shows(self, viewer: Viewer, edge: Edge) -> bool:
        """What a tenant's job has found in weights is that tenant's to see; what somebody only says, whose parent is.

        A dot without a name would tell that what was guessed is there.
        """
        if edge.source == "declared":
            return self.visible(viewer, edge.parent)
        if edge.relation != "recovered" or viewer.admin:
            return True
        run = self.runs.get(edge.job or "")
        return run is not None and run.tenant == viewer.tenant

    def walk(self, viewer: Viewer, start: str, *, up: bool, depth: int | None = None) -> dict[str, int]:
        """Ids that can be reached from one, and in how many steps; the start is not among them."""
        steps = {start: 0}
        waiting = deque([start])
        while waiting:
            at = waiting.popleft()
            if depth is not None and steps[at] >= depth:
                continue
            for edge in (self.above if up else self.below).get(at, ()):
                other = edge.parent if up else edge.child
                if other not in steps and self.shows(viewer, edge):
                    steps[other] = steps[at] + 1
                    waiting.append(other)
        del steps[start]
        return steps

    def graph(self, viewer: Viewer, root: str, depth: int) -> LineageGraph:
        """What an entry came of and what came of it."""
        up, down = (self.walk(viewer, root, up=up, depth=depth) for up in (True, False))
        depths = {root: 0, **down, **{one: -steps for one, steps in up.items()}}
        nearest = sorted(depths, key=lambda one: (abs(depths[one]), one))
        kept = set(nearest[:MOST_NODES])
        shown = [edge for edge in self.edges if self.shows(viewer, edge)]
        edges = tuple(edge for edge in shown if edge.parent in kept and edge.child in kept)
        more = any(
            (edge.child in kept and depths[edge.child] <= 0 and edge.parent not in kept)
            or (edge.parent in kept and depths[edge.parent] >= 0 and edge.child not in kept)
            for edge in shown
        )
        nodes = tuple(self.node(viewer, one, depths[one]) for one in nearest if one in kept)
        hidden = {one.id for one in nodes if one.state == "hidden"}
        bare = tuple(_bare(edge) if edge.child in hidden else edge for edge in edges)
        return LineageGraph(root=root, nodes=nodes, edges=bare, truncated=more)

    def node(self, viewer: Viewer, entry_id: str, depth: int = 0) -> Node:
        """An entry as a node: of what is deleted or another's, only that it is there."""
        entry = self.entries.get(entry_id)
        if entry is not None and self.visible(viewer, entry_id):
            return Node(
                id=entry_id,
                label=entry.name,
                kind=entry.kind,
                state=entry.state,
                depth=depth,
                method=entry.method,
                created=entry.created,
            )
        stone = self.tombstones.get(entry_id)
        if stone is not None and viewer.sees(stone):
            return Node(
                id=entry_id,
                label="",
                kind=stone.kind,
                state="deleted",
                depth=depth,
                method=stone.method,
                created=stone.created,
            )
        return Node(id=entry_id, label="", kind="", state="hidden", depth=depth)

    def _artifact(self, one: Artifact) -> Entry:
        name, lineage = slug(one.name), one.lineage
        record = self.models.get(self.model_of(one.base) or "") if one.base else None
        said = one.facts.get("model_type") or one.facts.get("architecture")
        return Entry(
            id=one.id,
            kind=one.kind,
            name=one.name or one.kind,
            owner=one.tenant,
            ref=f"lake://{one.tenant}/{name}@{one.hash[:16]}",
            hash=one.hash,
            created=one.created,
            state="kept",
            visibility=one.visibility,
            base=one.base.repo_id if one.base else None,
            architecture=said if isinstance(said, str) else (record.architecture if record else None),
            task=record.key.task if record else None,
            method=lineage.method if lineage else None,
            job=lineage.job if lineage else None,
            n_params=one.n_params,
            size=one.size,
            version=1 + self._versions[one.tenant, name].index(one.id),
            tags=self._tags_of.get(one.id, ()),
            metrics=lineage.metrics[:8] if lineage else (),
        )

    def _model(self, one: ModelRecord) -> Entry:
        name = slug(one.key.repo_id)
        return Entry(
            id=one.id,
            kind=_MODEL,
            name=one.key.repo_id,
            owner=HOSTED,
            ref=f"lake://{HOSTED}/{name}@{one.commit[:16]}",
            hash=one.commit,
            created=one.first_seen,
            state="hosted" if one.id in self.hosted else "away",
            architecture=one.architecture,
            task=one.key.task,
            n_params=one.n_params,
            size=one.size_bytes,
            version=1 + self._versions[HOSTED, name].index(one.id),
            tags=self._tags_of.get(one.id, ()),
        )

    def _edges_of(self, one: Artifact | Tombstone) -> Iterable[Edge]:
        if isinstance(one, Tombstone):
            model, commit, parents, method, job = one.model, one.commit, one.parents, one.method, one.job
        else:
            kept = one.lineage
            model, commit = (kept.model, kept.commit) if kept else (None, None)
            parents, method, job = (kept.parents, kept.method, kept.job) if kept else ((), None, None)
        edge = partial(Edge, child=one.id, method=method, job=job, at=one.created)
        if model is not None and commit is not None:
            yield edge(parent=model_id(model, commit), relation="base", source="recorded")
        elif one.base is not None and (known := self.model_of(one.base)) is not None:
            yield edge(parent=known, relation="base", source="declared")
        for text in parents:
            if (parent := self._id_of(text)) is not None:
                yield edge(parent=parent, relation="input", source="recorded")
        stated = one.declared.get("parent") if isinstance(one, Artifact) else None
        if stated and (parent := self._id_of(stated, Viewer(one.tenant))) not in (None, one.id):
            assert parent is not None
            yield edge(parent=parent, relation="declared", source="declared")

    def _recovered(self, run: RunRecord) -> Iterable[Edge]:
        on = model_id(run.lineage.model, run.lineage.commit)
        for one in run.heritage:
            parent, child = (on if text == _MODEL else self._id_of(text) for text in (one.parent, one.child))
            if parent and child and parent != child:
                yield Edge(
                    parent=parent,
                    child=child,
                    relation="recovered",
                    source="inferred",
                    method=run.lineage.method,
                    job=run.id,
                    at=run.ended,
                    margin=one.margin,
                )

    def _id_of(self, text: str, viewer: Viewer | None = None) -> str | None:
        """What an artifact's name or a ``lake://`` reference means, to a viewer that is not trusted to have seen it.

        None for neither, or where nothing is there.
        """
        try:
            if text.startswith("lake://"):
                meant = self.named(LakeRef.parse(text))
            else:
                meant = [AdapterRef.parse(text, "parent").id]
        except InvalidRequest:
            return None
        return next((one for one in meant if one and (viewer is None or self.visible(viewer, one))), None)


def _bare(edge: Edge) -> Edge:
    """An edge to what is not to be seen: that it is there."""
    return Edge(parent=edge.parent, child=edge.child, relation=edge.relation, source=edge.source)
