"""The lake: everything that is hosted or that jobs have made, found, described, linked, named and cited.

It keeps no copies: artifacts are those of `Artifacts`, and what is beside them lies in a few shelves of records.
"""

import asyncio
import time

from redis.asyncio import Redis

from interlace.protocol.artifact import Artifact
from interlace.protocol.errors import InvalidRequest, LimitExceeded, UnknownArtifact
from interlace.protocol.lake import (
    Card,
    Citation,
    Comparison,
    Entry,
    EntryChange,
    LakeCounts,
    LakePage,
    LakeRef,
    LineageGraph,
    Tag,
    slug,
)
from interlace_state.artifacts import Artifacts
from interlace_state.files import Files
from interlace_state.keys import Keys
from interlace_state.lake import card as cards
from interlace_state.lake.graph import Snapshot, Viewer
from interlace_state.lake.records import ModelRecord, RunRecord, Shelf, Tombstone, model_id
from interlace_state.lake.search import Query, WordIndexes, facets, in_order, matching
from interlace_state.models import ModelCard
from interlace_state.settings.lake import LakeConfig

_MOST_BEFORE = 32


class Lake:
    """What each viewer may see of it. Every question is answered of one moment."""

    def __init__(self, redis: Redis, keys: Keys, files: Files, artifacts: Artifacts, config: LakeConfig) -> None:
        self._redis = redis
        self._keys = keys
        self._config = config
        self._artifacts = artifacts
        self._models = Shelf(redis, keys, files, "models", ModelRecord)
        self._runs = Shelf(redis, keys, files, "runs", RunRecord)
        self._tombstones = Shelf(redis, keys, files, "tombstones", Tombstone)
        self._tags = Shelf(redis, keys, files, "tags", Tag)
        self._reading = asyncio.Lock()
        self._known: tuple[bytes | None, Snapshot, WordIndexes] | None = None

    async def search(self, viewer: Viewer, text: str = "", *, limit: int = 20, offset: int = 0) -> LakePage:
        """What the words and filters of a query find. Raises InvalidRequest, which lists the filters."""
        query = Query.parse(text)
        snapshot, indexes = await self._now()

        def find() -> LakePage:
            scores = indexes.of(viewer).find(query.words) if query.words else None
            sort = query.filters.get("sort", ())
            found = in_order(matching(snapshot, viewer, query), scores, sort)
            return LakePage(
                words=query.words,
                filters=dict(query.filters),
                total=len(found),
                offset=offset,
                entries=tuple(found[offset : offset + limit]),
                facets=facets(found),
            )

        return await asyncio.to_thread(find)

    async def entry(self, viewer: Viewer, entry_id: str) -> Entry:
        """Raises UnknownArtifact, also for what is another's."""
        return _seen((await self._now())[0], viewer, entry_id)

    async def card(self, viewer: Viewer, entry_id: str) -> Card:
        """All that is known of an entry, each statement with its source. Raises UnknownArtifact."""
        snapshot, _ = await self._now()
        entry = _seen(snapshot, viewer, entry_id)
        return await asyncio.to_thread(cards.card, snapshot, viewer, entry)

    async def lineage(self, viewer: Viewer, entry_id: str, depth: int = 3) -> LineageGraph:
        """What an entry, also a deleted one, came of and what came of it. Raises UnknownArtifact."""
        snapshot, _ = await self._now()
        if not snapshot.visible(viewer, entry_id):
            raise UnknownArtifact(entry_id)
        return await asyncio.to_thread(snapshot.graph, viewer, entry_id, depth)

    async def versions(self, viewer: Viewer, entry_id: str) -> tuple[Entry, ...]:
        """Those of the same owner and name, the newest first. Raises UnknownArtifact."""
        snapshot, _ = await self._now()
        found = snapshot.versions(_seen(snapshot, viewer, entry_id))[::-1]
        return tuple(snapshot.entries[one] for one in found if snapshot.visible(viewer, one))

    async def compare(self, viewer: Viewer, a: str, b: str) -> Comparison:
        """Two entries by record. Raises UnknownArtifact."""
        snapshot, _ = await self._now()
        return cards.compare(snapshot, viewer, _seen(snapshot, viewer, a), _seen(snapshot, viewer, b))

    async def cite(self, viewer: Viewer, entry_id: str, url: str) -> Citation:
        """How to cite an entry of the server at a URL. Raises UnknownArtifact."""
        snapshot, _ = await self._now()
        return cards.cite(snapshot, _seen(snapshot, viewer, entry_id), url)

    async def resolve(self, viewer: Viewer, text: str) -> Entry:
        """What ``lake://...`` or ``artifact:ID`` names now. Raises InvalidRequest, UnknownArtifact."""
        snapshot, _ = await self._now()
        if text.startswith("lake://"):
            meant, hash_ = snapshot.named(LakeRef.parse(text)), ""
        else:
            bare, _, hash_ = text.removeprefix("artifact:").partition("@")
            meant = [bare]
        for one in meant:
            entry = snapshot.entries.get(one)
            if entry is not None and snapshot.visible(viewer, one) and entry.hash.startswith(hash_):
                return entry
        raise UnknownArtifact(text[:256])

    async def tag(self, viewer: Viewer, entry_id: str, tag: str) -> Tag:
        """Have a tag point to one's own artifact, wherever it pointed before. Raises UnknownArtifact, LimitExceeded."""
        await self._own(viewer, entry_id)
        async with self._artifacts.held(entry_id):
            return await self._tag(await self._own(viewer, entry_id), tag)

    async def _tag(self, artifact: Artifact, tag: str) -> Tag:
        name = slug(artifact.name)
        place = f"{artifact.tenant}/{name}/{tag}"
        former = await self._tags.get(place)
        if former is None:
            own = [one for one in await self._tags.all() if one.startswith(f"{artifact.tenant}/")]
            if len(own) >= self._config.kept_tags:
                raise LimitExceeded("The number of your tags", self._config.kept_tags, "tags", "lake.kept_tags")
        before = () if former is None else (former.id, *former.before)[:_MOST_BEFORE]
        found = Tag(
            owner=artifact.tenant,
            name=name,
            tag=tag,
            id=artifact.id,
            hash=artifact.hash,
            moved=round(time.time(), 3),
            before=before,
        )
        await self._tags.put(place, found)
        return found

    async def untag(self, viewer: Viewer, entry_id: str, tag: str) -> None:
        """Take a tag off one's own artifact. Raises UnknownArtifact, also where it does not point there."""
        artifact = await self._own(viewer, entry_id)
        place = f"{artifact.tenant}/{slug(artifact.name)}/{tag}"
        found = await self._tags.get(place)
        if found is None or found.id != entry_id:
            raise UnknownArtifact(f"{entry_id}:{tag}")
        await self._tags.remove(place)

    async def change(self, viewer: Viewer, entry_id: str, change: EntryChange) -> Card:
        """Set who sees one's own artifact, and what its owner says of it. Raises UnknownArtifact, LimitExceeded."""
        await self._own(viewer, entry_id)

        def changes(artifact: Artifact) -> dict[str, object]:
            changed: dict[str, object] = {} if change.visibility is None else {"visibility": change.visibility}
            if change.declared is not None:
                said = {**artifact.declared, **change.declared}
                changed["declared"] = declared = {name: text for name, text in said.items() if text is not None}
                self._check_declared(declared)
            return changed

        await self._artifacts.change(entry_id, changes)
        return await self.card(viewer, entry_id)

    async def ran(self, record: RunRecord) -> None:
        """Remember a method's job that ends now. Of a tenant the newest are kept."""
        await self._runs.put(record.id, record)
        own = [one for one in (await self._runs.all()).values() if one.tenant == record.tenant]
        for old in sorted(own, key=lambda one: -one.ended)[self._config.kept_runs :]:
            await self._runs.remove(old.id)

    async def forget(self, job_id: str, record: RunRecord | None = None) -> None:
        """Remove what is remembered of a job; with a ``record`` only that, and not what another run of it has left."""
        found = await self._runs.get(job_id)
        if found is not None and record in (None, found):
            await self._runs.remove(job_id)

    async def rebuild(self) -> LakeCounts:
        """Make every index in Redis anew from the store; tags that have outlived what they pointed to go."""
        counts = {
            "artifacts": await self._artifacts.rebuild(),
            "models": await self._models.rebuild(),
            "runs": await self._runs.rebuild(),
            "tombstones": await self._tombstones.rebuild(),
            "tags": await self._tags.rebuild(),
        }
        gone = await self._tombstones.all()
        for place, tag in (await self._tags.all()).items():
            if tag.id in gone:
                await self._tags.remove(place)
                counts["tags"] -= 1
        await self._redis.set(self._keys.lake_built, round(time.time(), 3))
        return LakeCounts(**counts)

    async def make_sure_of_index(self) -> None:
        """Rebuild an index that was not made in this Redis: it may be a new one, to which a worker came first."""
        if not await self._redis.exists(self._keys.lake_built):
            await self.rebuild()

    async def _own(self, viewer: Viewer, entry_id: str) -> Artifact:
        """Raises UnknownArtifact for what is not the viewer's to change; an admin may change what is others'."""
        artifact = await self._artifacts.find(entry_id, None)
        if not viewer.sees(artifact) or not (viewer.admin or artifact.tenant == viewer.tenant):
            raise UnknownArtifact(entry_id)
        return artifact

    def _check_declared(self, declared: dict[str, str]) -> None:
        for name in declared:
            if not name.isprintable() or ":" in name or not 0 < len(name) <= 64:
                raise InvalidRequest(f"`declared` has the field {name[:64]!r}; expected up to 64 characters, no colon.")
        size, most = sum(len(name) + len(text) for name, text in declared.items()), self._config.declared_characters
        if size > most:
            raise LimitExceeded("What is declared of an artifact", most, "characters", "lake.declared_characters")

    async def _now(self) -> tuple[Snapshot, WordIndexes]:
        """All that is known, read again only where something has changed."""
        version = await self._redis.get(self._keys.lake_version)
        if self._known is None or self._known[0] != version:
            async with self._reading:
                version = await self._redis.get(self._keys.lake_version)
                if self._known is None or self._known[0] != version:
                    self._known = version, *await self._read()
        return self._known[1], self._known[2]

    async def _read(self) -> tuple[Snapshot, WordIndexes]:
        hosted = await self._redis.hvals(self._keys.models)
        artifacts = await self._redis.hvals(self._keys.artifacts)
        models, runs = await self._models.all(), await self._runs.all()
        tombstones, tags = await self._tombstones.all(), await self._tags.all()

        def build() -> tuple[Snapshot, WordIndexes]:
            cards = [ModelCard.model_validate_json(data) for data in hosted]
            found = [Artifact.model_validate_json(data) for data in artifacts]
            snapshot = Snapshot(
                artifacts={one.id: one for one in sorted(found, key=lambda one: (-one.created, one.id))},
                models=models,
                runs=runs,
                tombstones=tombstones,
                tags=tags,
                hosted=frozenset(model_id(one.key.canonical, one.commit) for one in cards),
            )
            snapshot.prepare()
            return snapshot, WordIndexes(snapshot)

        return await asyncio.to_thread(build)  # of a large lake it takes a second


def _seen(snapshot: Snapshot, viewer: Viewer, entry_id: str) -> Entry:
    """Raises UnknownArtifact."""
    if entry_id not in snapshot.entries or not snapshot.visible(viewer, entry_id):
        raise UnknownArtifact(entry_id)
    return snapshot.entries[entry_id]
