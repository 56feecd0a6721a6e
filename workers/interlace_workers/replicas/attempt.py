"""One attempt at a job: payload in, run it, record what happens on the way, result out."""

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path

from interlace.protocol.errors import InterlaceError, InvalidRequest, UnknownArtifact, UnknownJob
from interlace.protocol.event import Ended, Event, Log, Picture, Progress, Saved, StateChanged
from interlace.protocol.frames import BrokenFrame
from interlace.protocol.job import Cost, JobKind, JobState
from interlace_state import log
from interlace_state.queue import Lease
from interlace_state.store import State
from interlace_state.values import INLINE_BYTES, INLINE_TOGETHER
from interlace_workers.executors import given
from interlace_workers.executors.base import Done, ExecutorLost, Failed, Printed, Runner, Sealed, Started
from interlace_workers.executors.values import Streamed
from interlace_workers.replicas.adapters import Adapters
from interlace_workers.replicas.harvest import Harvest
from interlace_workers.replicas.journal import AWAY, Insist, Journal
from interlace_workers.replicas.telemetry import Watch

#: A job whose process has crashed so often is not run again.
_CRASHES = 2
_LAST_LINE = 200  # characters
_SURE = 0.5  # lengths of a lease in which it cannot have lapsed, whatever Redis' clock does beside ours
_ENDED_WITH_WHAT_IT_HAD = "The job was cancelled; its result is what it had by then."
_LOST_WHILE_STOPPING = (
    "The job was cancelled, and lost its worker before it had ended. `resume` goes on from its last checkpoint, if "
    "it has one."
)


class Attempt:
    """A leased job on an executor."""

    def __init__(
        self, state: State, executor: Runner, lease: Lease, insist: Insist, watch: Watch, adapters: Adapters
    ) -> None:
        self._state = state
        self._adapters = adapters
        self._sealed: tuple[Sealed, ...] = ()
        self._executor = executor
        self._lease = lease
        self._insist = insist
        self._journal = Journal(state.queue, lease, insist)
        self._watch = watch
        self._last_line = ""
        self._inline_left = INLINE_TOGETHER
        self._harvest: Harvest | None = None
        self._stopping = False

    @property
    def can_stop(self) -> bool:
        """Whether `stop` would be news."""
        return self._lease.job.kind is JobKind.METHOD and not self._stopping

    def stop(self) -> None:
        """Somebody has cancelled: let a method end with what it has."""
        self._stopping = True
        self._executor.cut_short(self._lease.job.id)

    async def undo(self) -> None:
        """The job ends without this attempt, or not well: what it has stored shall not stay."""
        if self._harvest is not None:
            with log.instead_of(Exception, "artifacts_kept"):
                await self._harvest.undo()

    async def run(self) -> Ended:
        """The job's last event, not yet written; all others are. Raises LeaseLost, ExecutorLost, RedisError.

        Where it is cancelled or raises, what it has stored is there, for `undo` or the next attempt.
        """
        async with self._journal:
            end = await self._run()
            await self._journal.written()
            return end

    async def _run(self) -> Ended:
        job = self._lease.job
        text = "Your job has been sent to the model."
        if self._lease.attempt > 1:
            text = f"Your job lost its worker and has been sent to another (attempt {self._lease.attempt})."
            await self._journal.note(Log(text=f"[It starts again: attempt {self._lease.attempt}.]"))
        self._journal.note_soon(StateChanged(state=JobState.LEASED, text=text))
        queued_seconds = round(max(0.0, time.time() - job.submitted_at), 4)
        try:
            payload = await self._state.results.payload(job)
            self._sealed = await self._insist(lambda: self._adapters.of(job))
            if job.kind is JobKind.METHOD:
                self._harvest = Harvest(self._state, job, payload, self._insist)
                asked = await self._insist(lambda: self._state.queue.is_stopping(job.id))
                self._stopping = self._stopping or asked
            staged = self._state.results.stage()
        except (UnknownJob, UnknownArtifact, InvalidRequest) as error:
            return Ended(state=JobState.ERROR, text=str(error))
        except AWAY:
            raise
        except Exception as error:  # noqa: BLE001 - the edge of the store, which may be anybody's
            return Ended(state=JobState.ERROR, text=_not_stored("read your job", error))
        if self._stopping and self._lease.attempt > 1:
            staged.unlink(missing_ok=True)
            return Ended(state=JobState.CANCELLED, text=_LOST_WHILE_STOPPING)
        try:
            outcome = await self._outcome(payload, staged)
            cost = outcome.cost.model_copy(update={"queued_seconds": queued_seconds})
            if isinstance(outcome, Failed):
                if self._stopping:
                    return Ended(state=JobState.CANCELLED, text=outcome.text, cost=cost)
                return Ended(state=JobState.ERROR, text=outcome.text, cost=cost)
            return await self._done(staged, cost)
        finally:
            staged.unlink(missing_ok=True)
            if self._harvest is not None:
                self._harvest.drop()

    async def _done(self, staged: Path, cost: Cost) -> Ended:
        """Put the result where its client finds it."""
        await self._make_sure_that_it_is_ours()
        try:
            if self._harvest is not None:
                await self._harvest.finish(staged, cost, cancelled=self._stopping)
            with self._watch.transfer(staged):
                result = await self._state.results.put(self._lease.job, staged)
        except AWAY:
            raise
        except Exception as error:  # noqa: BLE001 - the edge of the store, which may be anybody's
            await self.undo()
            said = str(error) if isinstance(error, InterlaceError) else _not_stored("store your job's result", error)
            return Ended(state=JobState.ERROR, text=said, cost=cost)
        if self._stopping:
            return Ended(state=JobState.CANCELLED, text=_ENDED_WITH_WHAT_IT_HAD, result=result, cost=cost)
        return Ended(state=JobState.COMPLETED, text="Your job has been completed.", result=result, cost=cost)

    async def _make_sure_that_it_is_ours(self) -> None:
        """Raises LeaseLost: whose job it is no more must not overwrite the result, nor store what its method gave.

        A trace that was leased a moment ago can be nobody else's. If it was cancelled, `finish` finds out.
        """
        if self._harvest is not None or self._lease.age > _SURE * self._state.queue.lease_seconds:
            await self._journal.confirm()

    async def _outcome(self, payload: bytes, staged: Path) -> Done | Failed:
        """Run the job; once more if its process crashed, which may have been the machine's fault."""
        outcome = await self._run_once(payload, staged)
        for _ in range(_CRASHES - 1):
            if not (isinstance(outcome, Failed) and outcome.crashed):
                return outcome
            await self._journal.note(Log(text=f"{outcome.text} It is run once more."))
            staged.write_bytes(b"")
            former, outcome = outcome, await self._run_once(payload, staged)
            outcome = replace(outcome, cost=_sum(former.cost, outcome.cost))
        if isinstance(outcome, Failed) and outcome.crashed:
            return replace(outcome, text=f"{outcome.text} {self._known(outcome)}")
        return outcome

    def _known(self, crashed: Failed) -> str:
        """What is left to look at of a job whose process crashed again."""
        words = [f"It was run {_CRASHES} times"]
        if crashed.cost.max_memory_usage:
            words.append(f"held {crashed.cost.max_memory_usage / (1 << 20):,.0f} MiB at most")
        if self._last_line:
            words.append(f"and printed last: {self._last_line[:_LAST_LINE]!r}")
        return ", ".join(words) + "."

    async def _run_once(self, payload: bytes, staged: Path) -> Done | Failed:
        sealed = self._sealed
        if self._harvest is not None:
            try:
                sealed += await self._harvest.begin()
            except InvalidRequest as error:
                return Failed(str(error), Cost())
        async with contextlib.aclosing(self._executor.run(self._lease.job, payload, staged, sealed)) as happenings:
            async for happening in happenings:
                if self._stopping:  # again, for it may not have run when it was asked
                    self._executor.cut_short(self._lease.job.id)
                if isinstance(happening, (Done, Failed)):
                    self._watch.ran(happening)
                    return happening
                if isinstance(happening, Streamed):
                    event = await self._saved(happening)
                    if isinstance(event, Failed):
                        self._watch.ran(event)
                        return event
                    self._watch.streamed(event.size)
                    await self._journal.note(event)
                    continue
                if isinstance(happening, (given.Artifact, given.Checkpoint)):
                    failed = await self._taken(happening)
                    if failed is not None:
                        self._watch.ran(failed)
                        return failed
                    continue
                if isinstance(happening, Picture):
                    await self._shown(happening)
                    continue
                if isinstance(happening, Progress):
                    await self._journal.note(happening)
                    continue
                if isinstance(happening, Printed):
                    self._last_line = happening.lines[-1]
                await self._journal.note(*_events(happening))
        raise ExecutorLost("the executor said nothing of how the job ended")

    async def _taken(self, found: given.Artifact | given.Checkpoint) -> Failed | None:
        """Take in what a method gives; None if that went well."""
        assert self._harvest is not None
        taking = asyncio.ensure_future(self._harvest.take(found))
        try:
            try:
                await asyncio.shield(taking)
            finally:
                await asyncio.wait({taking})  # the child's files are closed after this
        except InterlaceError as error:
            return Failed(str(error), Cost())
        except BrokenFrame:
            return Failed("The job changed what it had given; it was stopped.", Cost(), reason="broken_frame")
        except AWAY:
            raise
        except Exception as error:  # noqa: BLE001 - the edge of the store, as above
            return Failed(_not_stored("store what your job gave", error), Cost(), reason="not_stored")
        return None

    async def _saved(self, value: Streamed) -> Saved | Failed:
        """Put a value where its clients find it."""
        event = Saved(number=value.number, name=value.name, step=value.step, size=value.size)
        try:
            if value.size <= min(INLINE_BYTES, self._inline_left):
                self._inline_left -= value.size
                return event.model_copy(update={"data": value.read()})
            staged = self._state.values.stage()
            copying = asyncio.ensure_future(asyncio.to_thread(value.copy, staged))
            try:
                await asyncio.shield(copying)
                await self._state.values.put(self._lease.job.id, value.number, staged)
            finally:
                await asyncio.wait({copying})  # its descriptor is closed after this
                staged.unlink(missing_ok=True)
        except BrokenFrame:
            return Failed("The job changed what it had streamed; it was stopped.", Cost(), reason="broken_frame")
        except Exception as error:  # noqa: BLE001 - the edge of the store, as above
            return Failed(_not_stored("store a value that your job streamed", error), Cost(), reason="not_stored")
        return event

    async def _shown(self, picture: Picture) -> None:
        """Put a picture where who watches finds it; one that cannot be stored is not missed."""
        assert picture.data is not None
        try:
            await self._state.values.keep(self._lease.job.id, picture.number, picture.data)
        except Exception as error:  # noqa: BLE001 - the edge of the store, as above
            log.failure("store_failed", error)
            return
        await self._journal.note(picture.bare)


def _sum(first: Cost, second: Cost) -> Cost:
    """What two runs used together."""
    return Cost(
        runtime=round((first.runtime or 0) + (second.runtime or 0), 4),
        cpu_seconds=round((first.cpu_seconds or 0) + (second.cpu_seconds or 0), 4),
        max_memory_usage=max(first.max_memory_usage or 0, second.max_memory_usage or 0),
    )


def _not_stored(what: str, error: Exception) -> str:
    log.failure("store_failed", error)
    return (
        f"The server could not {what}: {getattr(error, 'strerror', None) or type(error).__name__}. Nothing is wrong "
        "with your code; tell the operator, and run it again later."
    )


def _events(happening: Started | Printed) -> list[Event]:
    if isinstance(happening, Started):
        return [StateChanged(state=JobState.RUNNING, text="Your job has started running.")]
    return [Log(text=line) for line in happening.lines]
