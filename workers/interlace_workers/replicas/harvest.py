"""What a method's job leaves: checkpoints as it goes; at its end, all or none, artifacts and an envelope."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from interlace.methods.base import Result
from interlace.protocol.artifact import KIND, AdapterRef, Artifact, Base, Lineage
from interlace.protocol.errors import InvalidRequest, UnknownArtifact
from interlace.protocol.job import Cost, Job
from interlace.protocol.lake import Measured
from interlace.protocol.method import (
    LONGEST_RESULT,
    Envelope,
    Made,
    MethodCall,
    MethodCost,
    Outcome,
    Payload,
    Provenance,
)
from interlace_state import log
from interlace_state.lake.records import Heritage, RunRecord
from interlace_state.models import ModelCard
from interlace_state.settings.limits import Admission
from interlace_state.store import State
from interlace_workers.executors import given
from interlace_workers.executors.base import Sealed
from interlace_workers.order import Adapter
from interlace_workers.replicas.adapters import seal_bytes
from interlace_workers.replicas.journal import Insist

#: A shorter run says nothing of a model's speed.
_LEAST_TOKENS = 256
#: Characters of parameters that are kept with what was made of them.
_LONGEST_PARAMS = 16 << 10
_MOST_METRICS = 64
_MOST_EDGES = 1024
#: The method whose results name edges of the lake.
_FINDS_EDGES = "lake.recover@"


@dataclass
class _Staged:
    """An artifact that was looked at, and is not taken in yet."""

    artifact: given.Artifact
    files: dict[str, Path] = field(default_factory=dict)

    def drop(self) -> None:
        for path in self.files.values():
            path.unlink(missing_ok=True)


class Harvest:
    """Takes in what one method's job gives. `drop` comes last, in any case.

    Redis is asked again while it is away; each call raises RedisError where it stays so.
    """

    def __init__(self, state: State, job: Job, payload: bytes, insist: Insist) -> None:
        assert job.method is not None
        self._state = state
        self._job = job
        self._call: MethodCall = job.method
        self._payload = payload
        self._insist = insist
        self._staged: list[_Staged] = []
        self._stored: list[Artifact] = []
        self._ran: RunRecord | None = None
        allowance = self._call.allowance
        self._limits = Admission(
            artifact_bytes=allowance.artifact_bytes,
            kept_artifact_bytes=allowance.kept_artifact_bytes,
            kept_artifacts=allowance.kept_artifacts,
        )

    async def begin(self) -> tuple[Sealed, ...]:
        """Forget what a former run here or elsewhere has given; the checkpoint to go on from, if there is one."""
        self.drop()
        # Of a worker that was lost between its last two steps.
        self._stored = await self._insist(lambda: self._state.artifacts.of_job(self._job.id, self._job.tenant))
        await self.undo()
        await self._insist(lambda: self._state.lake.forget(self._job.id))
        data = await self._state.checkpoints.read(self._job.id)
        if data is None and self._call.resume is not None:
            data = await self._state.checkpoints.read(self._call.resume)
            if data is None:
                raise InvalidRequest(f"The checkpoint of job {self._call.resume} is gone: run it anew.")
        if data is None:
            return ()
        adapter = Adapter("checkpoint", "", 0, use="checkpoint")
        return (await asyncio.to_thread(seal_bytes, adapter, [data], ()),)

    async def take(self, found: given.Artifact | given.Checkpoint) -> None:
        """Take in what a run gives on its way. Raises InterlaceError, BrokenFrame, OSError."""
        if isinstance(found, given.Checkpoint):
            await self._keep(found)
            return
        staged = _Staged(found)
        self._staged.append(staged)
        for name in found.files:
            staged.files[name] = path = self._state.artifacts.stage()
            await asyncio.to_thread(found.copy, name, path)
        beside = sum(one.artifact.size for one in self._staged[:-1])
        tenant, kind = self._job.tenant, KIND.validate_python(found.kind)
        await self._insist(
            lambda: self._state.artifacts.examine(tenant, kind, staged.files, self._limits, beside=beside)
        )

    async def _keep(self, found: given.Checkpoint) -> None:
        """A checkpoint that does not come whole is not kept: there is one before it, and there will be one after."""
        path = self._state.checkpoints.stage()
        try:
            if await asyncio.to_thread(found.copy, path):
                await self._state.checkpoints.put(self._job.id, path, self._payload)
            else:
                log.warning("checkpoint_overtaken", step=found.step, size=found.size)
        finally:
            path.unlink(missing_ok=True)

    async def finish(self, staged: Path, cost: Cost, *, cancelled: bool) -> None:
        """Store the artifacts, put the result into its envelope, in its place, and tell the lake.

        Raises InterlaceError where something is not what it must be, or has no room. Whatever it raises, and whatever
        comes between it and the job's end, is for `undo`.
        """
        outcome = await asyncio.to_thread(_read, staged)
        edges = found_edges(outcome) if self._call.ref.startswith(_FINDS_EDGES) else ()
        card = (await self._insist(lambda: self._state.models.find(self._job.model))).card
        lineage = await self._lineage(outcome, card)
        base = Base(repo_id=card.key.repo_id, key=card.key.canonical, commit=card.commit)
        stored = self._stored
        for one in self._staged:
            stored.append(await self._store(one, lineage, base))
        envelope = Envelope(
            status="cancelled" if cancelled else "completed",
            result=outcome.result,
            artifacts=tuple(Made(ref=one.ref, kind=one.kind, name=one.name, size=one.size) for one in stored),
            provenance=self._provenance(outcome, lineage),
            warnings=outcome.warnings,
            cost=MethodCost(
                seconds=cost.runtime,
                forwards=outcome.forwards,
                backwards=outcome.backwards,
                tokens=outcome.tokens,
                peak_bytes=cost.max_memory_usage,
            ),
        )
        _check_names(outcome, stored)
        await asyncio.to_thread(staged.write_text, envelope.model_dump_json())
        await self._measure(outcome, cost)
        self._ran = ran = RunRecord(
            id=self._job.id,
            tenant=self._job.tenant,
            creator=self._call.creator,
            ended=round(time.time(), 6),
            status=envelope.status,
            lineage=lineage,
            made=tuple(one.id for one in stored),
            heritage=edges,
        )
        await self._insist(lambda: self._state.lake.ran(ran))

    async def _lineage(self, outcome: Outcome, card: ModelCard) -> Lineage:
        params = Payload.model_validate_json(self._payload).params
        return Lineage(
            job=self._job.id,
            method=self._call.ref,
            model=card.key.canonical,
            commit=card.commit,
            params_sha256=self._call.params_sha256,
            parents=await self._parents(),
            params=params if len(json.dumps(params)) <= _LONGEST_PARAMS else None,
            seed=self._call.seed,
            edits=self._call.edits,
            data_sha256=outcome.data_sha256,
            metrics=measured(outcome),
            libraries=outcome.libraries,
            dtype=outcome.dtype,
            device=outcome.device,
        )

    async def undo(self) -> None:
        """Remove what was stored, and what the lake was told."""
        for one in self._stored:
            await self._insist(partial(self._state.artifacts.delete, one, undo=True))
        self._stored = []
        if self._ran is not None:
            await self._insist(partial(self._state.lake.forget, self._job.id, self._ran))

    def drop(self) -> None:
        """Forget what was not stored."""
        for one in self._staged:
            one.drop()
        self._staged.clear()

    async def _store(self, one: _Staged, lineage: Lineage, base: Base) -> Artifact:
        kind = KIND.validate_python(one.artifact.kind)
        return await self._insist(
            lambda: self._state.artifacts.add(
                self._job.tenant,
                kind,
                one.files,
                self._limits,
                name=one.artifact.name or f"{lineage.method} {one.artifact.kind}",
                creator=self._call.creator,
                base=base,
                artifact_id=one.artifact.id,
                lineage=lineage,
            )
        )

    async def _parents(self) -> tuple[str, ...]:
        found = []
        for text in (*self._call.opens, *self._call.edits):
            ref = AdapterRef.parse(text, "params")
            try:
                found.append((await self._insist(partial(self._state.artifacts.named, ref, self._job.tenant))).ref)
            except UnknownArtifact:  # deleted meanwhile
                found.append(text)
        return tuple(dict.fromkeys(found))

    def _provenance(self, outcome: Outcome, lineage: Lineage) -> Provenance:
        return Provenance(
            job=self._job.id,
            method=self._call.ref,
            model=lineage.model,
            revision=lineage.commit,
            dtype=outcome.dtype,
            device=outcome.device,
            libraries=outcome.libraries,
            params=Payload.model_validate_json(self._payload).params,
            seed=self._call.seed,
            edits=self._call.edits,
            data_sha256=outcome.data_sha256,
        )

    async def _measure(self, outcome: Outcome, cost: Cost) -> None:
        """Remember how fast the model was."""
        work = outcome.tokens * (1 + 2 * outcome.backwards / max(1, outcome.forwards))
        if outcome.tokens >= _LEAST_TOKENS and cost.runtime and cost.cpu_seconds:
            # Of the two the less: several threads use more than passes, and a busy machine lets more pass than is used.
            seconds = min(cost.runtime, cost.cpu_seconds) / work
            await self._insist(lambda: self._state.models.measured(self._job.model, seconds))


def _read(staged: Path) -> Outcome:
    """What the child has written. Raises InvalidRequest. Blocks."""
    if staged.stat().st_size > LONGEST_RESULT:
        raise InvalidRequest(f"The method's result has over {LONGEST_RESULT:,} bytes; what is large is for artifacts.")
    try:
        outcome = Outcome.model_validate_json(staged.read_bytes())
        Result.model_validate(outcome.result)
    except ValidationError as error:
        raise InvalidRequest(f"The method's result is none: {error}") from None
    return outcome


def measured(outcome: Outcome) -> tuple[Measured, ...]:
    """The first metrics of a result that are finite numbers with short names."""
    found = []
    for one in outcome.result.get("metrics") or ():
        try:
            metric = Measured.model_validate({name: one[name] for name in Measured.model_fields if name in one})
        except (ValidationError, TypeError):
            continue
        if isfinite(metric.value) and all(map(isfinite, metric.ci95 or ())):
            found.append(metric)
    return tuple(found[:_MOST_METRICS])


def found_edges(outcome: Outcome) -> tuple[Heritage, ...]:
    """The edges that a result names. Raises InvalidRequest where they are none."""
    said: Any = outcome.result.get("heritage") or ()
    try:
        return tuple(Heritage.model_validate(one, strict=False) for one in said[:_MOST_EDGES])
    except (ValidationError, TypeError) as error:
        raise InvalidRequest(f"The method's `heritage` is none: {error}") from None


def _check_names(outcome: Outcome, stored: list[Artifact]) -> None:
    """Raises InvalidRequest where the result names an artifact that the run has not given."""
    named: Any = outcome.result.get("artifacts") or ()
    if strange := sorted(set(named) - {one.ref for one in stored}):
        raise InvalidRequest(f"The method's result names {strange[0]}, which it has not given.")
