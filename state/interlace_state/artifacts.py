"""Artifacts: files that never change, each set with a manifest beside it, and an index that is made from the manifests.

In the file store: ``artifacts/{tenant}/{id}/{file}``, and the manifest last: without one there is no artifact.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from interlace.protocol.adapter import Facts
from interlace.protocol.artifact import (
    FILES,
    LAYOUTS,
    MANIFEST,
    AdapterRef,
    Artifact,
    ArtifactFile,
    ArtifactKind,
    Base,
    Lineage,
    content_hash,
)
from interlace.protocol.errors import MAKE_ROOM, InvalidArtifact, LimitExceeded, StoreFull, UnknownArtifact
from interlace.protocol.kinds import check, longest_config
from interlace.protocol.lake import Tag
from interlace.protocol.safetensors import read_header
from interlace_state.files import Files, Piece
from interlace_state.keys import Keys
from interlace_state.lake.records import Shelf, Tombstone, as_it_is, batched
from interlace_state.settings.adapters import AdaptersConfig
from interlace_state.settings.limits import Admission
from interlace_state.settings.services import StoreConfig
from interlace_state.tenants import Tenants

_FOLDER = "artifacts"
_CHUNK = 1 << 20  # bytes
_HELD_SECONDS = 10.0  # for which a process that stops in between keeps others from an artifact
_PAUSE = 0.01  # seconds
_YOUNG_SECONDS = 3600.0  # an upload may take so long: what has no manifest is left alone until then


class Artifacts:
    """The artifacts of all tenants. None of another's is ever shown, nor that it is there."""

    def __init__(self, redis: Redis, keys: Keys, files: Files, store: StoreConfig, adapters: AdaptersConfig) -> None:
        self._redis = redis
        self._keys = keys
        self._files = files
        self._store = store
        self._adapters = adapters
        self._tenants = Tenants(redis, keys)
        self._tombstones = Shelf(redis, keys, files, "tombstones", Tombstone)
        self._tags = Shelf(redis, keys, files, "tags", Tag)
        self._checking = asyncio.Lock()  # a header may unfold to a hundred times its bytes: one at a time

    def stage(self) -> Path:
        """An empty private file to write an upload into."""
        return self._files.stage()

    async def add(
        self,
        tenant: str,
        kind: ArtifactKind,
        staged: Mapping[str, Path],
        limits: Admission,
        *,
        name: str = "",
        creator: str | None = None,
        base: Base | None = None,
        artifact_id: str | None = None,
        lineage: Lineage | None = None,
    ) -> Artifact:
        """Check files and take them in. ``artifact_id`` is one that nobody has.

        Raises InvalidArtifact, LimitExceeded, StoreFull; then nothing is left of it but what was staged, which is the
        caller's to remove. Where Redis was away, that is whole, and the call can be made again.
        """
        facts, files = await self.examine(tenant, kind, staged, limits)
        if base is None and facts.base is not None:
            base = Base(repo_id=facts.base)
        artifact = Artifact(
            id=artifact_id or secrets.token_hex(8),
            hash=content_hash(kind, files),
            kind=kind,
            name=name,
            tenant=tenant,
            creator=creator,
            created=round(time.time(), 3),
            base=base,
            files=files,
            n_params=facts.n_params,
            facts=facts.facts,
            lineage=lineage,
        )
        await self._keep(artifact, staged, limits)
        return artifact

    async def examine(
        self, tenant: str, kind: ArtifactKind, staged: Mapping[str, Path], limits: Admission, *, beside: int = 0
    ) -> tuple[Facts, tuple[ArtifactFile, ...]]:
        """What `add` would look at, of files that are not to be taken in yet; ``beside`` is bytes of others like them.

        Raises InvalidArtifact, LimitExceeded, StoreFull.
        """
        size = sum(path.stat().st_size for path in staged.values())
        await self._make_sure_of_room(tenant, size, limits, beside)
        async with self._checking:
            return await asyncio.to_thread(self._examine, kind, staged)

    async def of_job(self, job_id: str, tenant: str) -> list[Artifact]:
        """What a job has made."""
        return [one for one in await self.all(tenant) if one.lineage is not None and one.lineage.job == job_id]

    async def find(
        self, artifact_id: str, tenant: str | None, *, key: str | None = None, own: bool = False
    ) -> Artifact:
        """An artifact that a tenant may read, or with None anybody's; with ``own`` none that is public and another's.

        ``key`` is the id of the key that asks, for what is private to one; None: whoever asks was looked at before.
        Raises UnknownArtifact, also for what is another's.
        """
        data = await self._redis.hget(self._keys.artifacts, artifact_id)
        artifact = None if data is None else Artifact.model_validate_json(data)
        if artifact is None or not await self._reaches(artifact, tenant, key, own):
            raise UnknownArtifact(artifact_id)
        return artifact

    async def _reaches(self, artifact: Artifact, tenant: str | None, key: str | None, own: bool) -> bool:
        if tenant is None:
            return True
        if artifact.tenant != tenant:
            return artifact.visibility == "public" and not own
        if artifact.visibility != "private" or key is None or artifact.creator is None:
            return True
        return artifact.creator in await self._tenants.former(key)

    async def named(self, ref: AdapterRef, tenant: str, key: str | None = None) -> Artifact:
        """The artifact that a request names. Raises UnknownArtifact, also where it has another hash."""
        artifact = await self.find(ref.id, tenant, key=key)
        if not artifact.hash.startswith(ref.hash):
            raise UnknownArtifact(ref.text.removeprefix("artifact:"))
        return artifact

    async def all(self, tenant: str | None) -> list[Artifact]:
        """A tenant's artifacts, or with None everybody's, the newest first."""
        if tenant is None:
            found = await self._redis.hvals(self._keys.artifacts)
        else:
            ids = await self._redis.smembers(self._keys.artifacts_of(tenant))
            found = await self._redis.hmget(self._keys.artifacts, *sorted(ids)) if ids else []
        artifacts = [Artifact.model_validate_json(data) for data in found if data is not None]
        return sorted(artifacts, key=lambda one: (-one.created, one.id))

    async def open(self, artifact: Artifact, name: str) -> tuple[int, Callable[[int, int], AsyncIterator[Piece]]]:
        """A file's size, and what gives its bytes from one position up to another. Raises UnknownArtifact."""
        path = f"{_place(artifact)}/{_known(artifact, name)}"
        try:
            return await self._files.size(path), partial(self._files.stream, path)
        except FileNotFoundError:
            raise UnknownArtifact(artifact.id) from None

    async def read(self, artifact: Artifact, name: str) -> bytes:
        """A file, whole. Raises UnknownArtifact, InvalidArtifact if it is not what was uploaded."""
        try:
            data = await self._files.get(f"{_place(artifact)}/{_known(artifact, name)}")
        except FileNotFoundError:
            raise UnknownArtifact(artifact.id) from None
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        if digest != next(file.sha256 for file in artifact.files if file.name == name):
            raise InvalidArtifact(f"{name} of artifact {artifact.id} is not what was uploaded; tell the operator.")
        return data

    @asynccontextmanager
    async def held(self, artifact_id: str) -> AsyncIterator[None]:
        """An artifact for one at a time, in all processes: its manifest and its place in the index change together."""
        lock = self._redis.lock(self._keys.artifact_held(artifact_id), timeout=_HELD_SECONDS, sleep=_PAUSE)
        await lock.acquire()
        try:
            yield
        finally:
            with suppress(RedisError):  # then it lapses
                await lock.release()

    async def change(self, artifact_id: str, changes: Callable[[Artifact], Mapping[str, object]]) -> Artifact:
        """Set `visibility` or `declared` to what ``changes`` makes of it as it is. Raises UnknownArtifact."""
        async with self.held(artifact_id):
            artifact = await self.find(artifact_id, None)
            changed = Artifact.model_validate({**artifact.model_dump(), **changes(artifact)})
            await self._files.put(f"{_place(artifact)}/{MANIFEST}", changed.model_dump_json(indent=2).encode())
            await self._index(changed)
        return changed

    async def delete(self, artifact: Artifact, *, undo: bool = False) -> None:
        """Remove an artifact and its files. Jobs that have it at hand go on.

        A tombstone stays, for what came of it; with ``undo`` none does: then it never was. Its tags go.
        """
        async with self.held(artifact.id):
            if not undo:
                with suppress(UnknownArtifact):  # another has deleted it
                    artifact = await self.find(artifact.id, None)
                await self._tombstones.put(artifact.id, Tombstone.of(artifact, round(time.time(), 3)))
            for place, tag in (await self._tags.all()).items():
                if tag.id == artifact.id:
                    await self._tags.remove(place)
            await self._files.delete(f"{_place(artifact)}/{MANIFEST}")  # first: else a new index would have it again
            await self._forget(artifact)
            await self._files.delete_folder(_place(artifact))

    async def rebuild(self) -> int:
        """Make the index from the manifests, and remove what an interrupted upload has left; returns how many."""
        names = set(await self._files.names(_FOLDER))
        folders = {name.rpartition("/")[0] for name in names if name.count("/") == 2}
        before = {f"{one.tenant}/{one.id}": one for one in await self.all(None)}
        old = set(await self._files.older(_FOLDER, time.time() - _YOUNG_SECONDS))
        for folder in folders:
            if f"{folder}/{MANIFEST}" not in names and all(n in old for n in names if n.startswith(f"{folder}/")):
                await self._files.delete_folder(f"{_FOLDER}/{folder}")
        found = 0
        for some in batched(sorted(folders | before.keys())):
            found += await as_it_is(self._redis, self._keys.lake_version, partial(self._reindex, some, before))
        await self._redis.incr(self._keys.lake_version)
        return found

    async def _reindex(self, folders: Sequence[str], before: Mapping[str, Artifact], pipe: Pipeline) -> int:
        """Have some of the index follow the manifests; returns how many there are."""
        manifests = await asyncio.gather(*map(self._manifest, folders))
        pipe.multi()
        for folder, one in zip(folders, manifests, strict=True):
            if one is not None:
                self._add(one, pipe)
            # What has lost its manifest is no artifact; one that just comes has none yet.
            elif folder in before and before[folder].created < time.time() - _YOUNG_SECONDS:
                self._remove(before[folder], pipe)
        return sum(one is not None for one in manifests)

    async def make_sure_of_index(self) -> None:
        """Rebuild an index that is not there: Redis may be a new one."""
        if not await self._redis.exists(self._keys.artifacts):
            await self.rebuild()

    async def _manifest(self, folder: str) -> Artifact | None:
        """What a folder's manifest says; None where it has none, or one that cannot be right."""
        try:
            artifact = Artifact.model_validate_json(await self._files.get(f"{_FOLDER}/{folder}/{MANIFEST}"))
        except (ValidationError, FileNotFoundError):
            return None
        return artifact if folder == f"{artifact.tenant}/{artifact.id}" else None

    async def _make_sure_of_room(self, tenant: str, more: int, limits: Admission, beside: int) -> None:
        if more > limits.artifact_bytes:
            raise LimitExceeded("The artifact", limits.artifact_bytes, "bytes", "limits.artifact_bytes")
        more += beside
        check_quota(await self.all(tenant), limits, more=more)
        free = self._files.free()
        if free is not None and free - more < self._store.min_free_bytes:
            raise StoreFull(
                f"The server's disk has {free:,} bytes left, and uploads must leave {self._store.min_free_bytes:,} "
                "(`store.min_free_bytes`)."
            )

    def _examine(self, kind: ArtifactKind, staged: Mapping[str, Path]) -> tuple[Facts, tuple[ArtifactFile, ...]]:
        """Look into files, as far as JSON goes, and hash them. Raises InvalidArtifact. Blocks."""
        check_names(kind, staged)
        layout, header, config = LAYOUTS[kind], None, b""
        if layout.tensors is not None:
            weights = staged[layout.tensors]
            with weights.open("rb") as file:
                header = read_header(file, weights.stat().st_size, layout.tensors)
        if layout.config is not None:
            with staged[layout.config].open("rb") as file:
                config = file.read(longest_config(kind) + 1)
        facts = check(kind, config, header, self._adapters.max_rank)
        return facts, tuple(_described(name, path) for name, path in sorted(staged.items()))

    async def _keep(self, artifact: Artifact, staged: Mapping[str, Path], limits: Admission) -> None:
        """Put index, files and manifest in place: Redis first, which may be away. Raises LimitExceeded, StoreFull."""
        try:
            await self._index(artifact)
            # Once more, with it: of uploads that come at once none may pass that is over.
            check_quota(await self.all(artifact.tenant), limits)
            for name, path in staged.items():
                await self._files.adopt(path, f"{_place(artifact)}/{name}")
            await self._files.put(f"{_place(artifact)}/{MANIFEST}", artifact.model_dump_json(indent=2).encode())
        except BaseException as error:
            await self._files.delete_folder(_place(artifact))
            await self._forget(artifact)
            if isinstance(error, OSError):
                raise StoreFull(f"The server's store takes nothing: {error.strerror}.") from None
            raise

    async def _index(self, artifact: Artifact) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            self._add(artifact, pipe)
            pipe.incr(self._keys.lake_version)
            await pipe.execute()

    async def _forget(self, artifact: Artifact) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            self._remove(artifact, pipe)
            pipe.incr(self._keys.lake_version)
            await pipe.execute()

    def _add(self, artifact: Artifact, pipe: Pipeline) -> None:
        pipe.hset(self._keys.artifacts, artifact.id, artifact.model_dump_json())
        pipe.sadd(self._keys.artifacts_of(artifact.tenant), artifact.id)

    def _remove(self, artifact: Artifact, pipe: Pipeline) -> None:
        pipe.hdel(self._keys.artifacts, artifact.id)
        pipe.srem(self._keys.artifacts_of(artifact.tenant), artifact.id)


def check_names(kind: ArtifactKind, names: Mapping[str, object]) -> None:
    """Raises InvalidArtifact unless these are the files of such an artifact."""
    needed, possible = FILES[kind]
    strange = sorted(set(names) - needed - possible)
    if strange:
        pickles = [name for name in strange if name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"))]
        why = " It may be a pickle, which runs code where it is read: save as safetensors." if pickles else ""
        raise InvalidArtifact(
            f"{(pickles or strange)[0][:96]!r} is no file of a {kind} artifact; expected "
            f"{', '.join(sorted(needed))}.{why}"
        )
    if missing := sorted(needed - set(names)):
        raise InvalidArtifact(f"{missing[0]} is missing: a {kind} artifact has {', '.join(sorted(needed))}.")


def check_quota(artifacts: list[Artifact], limits: Admission, more: int | None = None) -> None:
    """Raises LimitExceeded where a tenant has more than it may, or would with ``more`` bytes of another artifact."""
    count, size = len(artifacts), sum(one.size for one in artifacts)
    if more is not None:
        count, size = count + 1, size + more
    if count > limits.kept_artifacts:
        most = limits.kept_artifacts
        raise LimitExceeded("The number of your artifacts", most, "artifacts", "limits.kept_artifacts", MAKE_ROOM)
    if size > limits.kept_artifact_bytes:
        most = limits.kept_artifact_bytes
        raise LimitExceeded("What your artifacts hold", most, "bytes", "limits.kept_artifact_bytes", MAKE_ROOM)


def _place(artifact: Artifact) -> str:
    return f"{_FOLDER}/{artifact.tenant}/{artifact.id}"


def _known(artifact: Artifact, name: str) -> str:
    """Raises UnknownArtifact for a name that is no file of it."""
    if name not in {file.name for file in artifact.files}:
        raise UnknownArtifact(f"{artifact.id}/{name}")
    return name


def _described(name: str, path: Path) -> ArtifactFile:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return ArtifactFile(name=name, size=path.stat().st_size, sha256=digest.hexdigest())
