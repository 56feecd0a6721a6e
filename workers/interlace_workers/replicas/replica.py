"""One copy of a model at work: pull jobs, run each in a sandbox, record what happens.

A plain asyncio program, which a Ray Serve deployment wraps or which runs as a process of its own.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import RedisError

from interlace.protocol.event import Ended
from interlace.protocol.job import JobKind, JobState
from interlace.protocol.model import ModelKey
from interlace_state import log
from interlace_state.config import Config
from interlace_state.models import HEARTBEAT, ModelState
from interlace_state.models import Replica as SignOfLife
from interlace_state.queue import Lease
from interlace_state.store import State
from interlace_state.tasks import cancelled
from interlace_workers.executors import proc
from interlace_workers.executors.base import Apart, Executor, ExecutorLost, LoadFailed, Runner
from interlace_workers.replicas import environment
from interlace_workers.replicas.adapters import Adapters
from interlace_workers.replicas.attempt import Attempt
from interlace_workers.replicas.journal import AWAY, LeaseLost
from interlace_workers.replicas.telemetry import Telemetry, Watch

#: A job that this many workers have lost is not given to another.
_MOST_ATTEMPTS = 3
_PATIENCE_LEASES = 4  # lengths of a lease that Redis may be away
_PAUSE = 0.2  # seconds
_STOPPED = "The worker stopped; the job waits for another."
#: Jobs that a tenant, none of whose jobs could share a forward, runs alone before the next try.
_UNLIKE = 32

T = TypeVar("T")


class Replica:
    """Runs up to ``slots`` jobs of one model at a time."""

    def __init__(
        self,
        config: Config,
        state: State,
        key: ModelKey,
        executor: Executor,
        telemetry: Telemetry,
        *,
        name: str,
        slots: int,
    ) -> None:
        self._config = config
        self._state = state
        self._key = key
        self._executor = executor
        self._telemetry = telemetry
        self._name = name
        self._slots = slots
        self._adapters = Adapters(config.adapters, state, key)
        self._ready = False
        #: By tenant: jobs to run alone before the next try, where none could share.
        self._unlike: dict[str, int] = {}
        #: By job and fence: after a silence, a job may be given to the replica that still runs it.
        self._running: dict[tuple[str, int], tuple[Lease, asyncio.Task[Ended], Attempt]] = {}

    async def serve(self, stop: asyncio.Event) -> None:
        """Load the model, work until ``stop``, let running jobs end.

        Raises LoadFailed, ExecutorLost when the model's process is gone, RedisError when Redis stays away; no job is
        left leased where Redis can be told so.
        """
        stopping = asyncio.create_task(stop.wait(), name="stop")
        tasks = [
            stopping,
            asyncio.create_task(self._beat(), name="heartbeat"),
            asyncio.create_task(self._heed_cancellations(), name="cancellations"),
        ]
        try:
            loading = asyncio.create_task(self._startup(), name="load")
            tasks.append(loading)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                await self._main_loop(tasks, stopping)
        finally:
            await cancelled(*tasks)
            await self._shutdown()

    async def _startup(self) -> None:
        hosted = await self._state.models.find(self._key)
        if hosted.card.failure is not None:  # of a former try
            await self._state.models.publish(hosted.card.model_copy(update={"failure": None}))
        describing = asyncio.create_task(asyncio.to_thread(environment.describe), name="environment")
        try:
            loaded = await self._executor.start()
        except LoadFailed as error:
            await give_up(self._state, self._key, str(error))
            raise
        facts = {"n_params": loaded.n_params, "size_bytes": loaded.size_bytes, "failure": None}
        await self._state.models.publish(hosted.card.model_copy(update=facts))
        await self._state.models.publish_environment(await describing)
        self._telemetry.loaded(loaded)
        if loaded.token_seconds is not None and await self._state.models.speed(self._key) is None:
            await self._state.models.measured(self._key, loaded.token_seconds)
        self._ready = True
        await self._say_alive()

    async def _main_loop(self, tasks: "list[asyncio.Task[Any]]", stopping: "asyncio.Task[Any]") -> None:
        """Work until told to stop, or until something that must not end has ended; then let running jobs end."""
        heartbeat, cancellations, loading = tasks[1:]
        if heartbeat.done():
            heartbeat.result()
        loading.result()
        slots = [asyncio.create_task(self._work(stopping), name=f"slot {slot}") for slot in range(self._slots)]
        losing = asyncio.create_task(self._lose(), name="lose the model")
        tasks += [*slots, losing]
        await asyncio.wait({stopping, heartbeat, cancellations, losing, *slots}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            await asyncio.wait(slots, timeout=self._config.gateway.drain_seconds)
        for task in (heartbeat, cancellations, losing, *slots):
            if task.done():
                task.result()

    async def _lose(self) -> None:
        """Raise ExecutorLost when the model's process has gone, so that the next job finds it loaded again.

        Not while a job runs, which learns of it itself: what took the model down must count that as an attempt.
        """
        await self._executor.lost()
        while self._running:
            await asyncio.sleep(_PAUSE)
        raise ExecutorLost("the process that holds the model has ended")

    async def _shutdown(self) -> None:
        await self._executor.stop()
        with contextlib.suppress(RedisError):  # then the sign of life runs out by itself
            await self._state.models.leave(self._key, self._name)

    async def _work(self, stopping: "asyncio.Task[Any]") -> None:
        while not stopping.done():
            lease = await self._insist(lambda: self._state.queue.lease(self._key, self._name))
            if lease is not None and self._may_share(lease):
                await self._run_party([lease, *await self._company(lease)])
            elif lease is not None:
                await self._follow(lease, self._executor)

    def _may_share(self, lease: Lease) -> bool:
        """Whether to look for company; not again at once where none of a tenant's jobs could share."""
        left = self._unlike.get(lease.job.tenant, 0)
        if left:
            self._unlike[lease.job.tenant] = left - 1
        return lease.has_company and not left

    async def _company(self, lease: Lease) -> list[Lease]:
        """What may share a forward with a held job: what waits, and what comes in the next few ms if something did."""
        most, window = self._config.batching.most - 1, self._config.batching.window
        found: list[Lease] = []
        try:
            await self._ask_for_company(lease, found)
            if found and len(found) < most and window:
                await asyncio.sleep(window)
                await self._ask_for_company(lease, found)
        except asyncio.CancelledError:
            for one in (lease, *found):
                await asyncio.shield(self._state.queue.give_back(one, _STOPPED))
            raise
        return found

    async def _ask_for_company(self, lease: Lease, found: list[Lease]) -> None:
        """Add to ``found``; cancelled, too, for what Redis has leased by then is ours."""
        left = self._config.batching.most - 1 - len(found)
        asking = asyncio.ensure_future(self._insist(lambda: self._state.queue.company(lease, self._name, left)))
        try:
            found += await asyncio.shield(asking)
        except asyncio.CancelledError:
            await asyncio.wait({asking})
            found += asking.result()
            raise

    async def _run_party(self, leases: list[Lease]) -> None:
        """Run jobs of one tenant side by side in one slot; each has its own end."""
        runners = self._executor.party(len(leases)) if len(leases) > 1 else [self._executor]
        running = [self._follow(lease, runner) for lease, runner in zip(leases, runners, strict=True)]
        ends = await asyncio.gather(*running, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        self._unlike[leases[0].job.tenant] = len(leases) + _UNLIKE if not any(ends) else 0

    async def _follow(self, lease: Lease, runner: Runner) -> bool:
        """Run one job; False if it cannot share, and went back."""
        with self._telemetry.job(lease.job, lease.attempt) as watch:
            try:
                await self._run(lease, runner, watch)
            except Apart:
                text = "Your job cannot share a forward with your others; it is your next, and runs alone."
                await asyncio.shield(self._insist(lambda: self._state.queue.part(lease, text)))
                watch.parted()
                return False
            finally:
                runner.give_up()
        return True

    async def _run(self, lease: Lease, runner: Runner, watch: Watch) -> None:
        """Run one job to its end, or give it back whole. Raises Apart."""
        if lease.attempt > _MOST_ATTEMPTS:
            text = f"The job lost its worker {_MOST_ATTEMPTS} times and is not tried again."
            await self._finish(lease, Ended(state=JobState.ERROR, text=text), watch)
            return
        self._stop(lease.job.id)  # what is left of it here has lost its lease
        attempt = Attempt(self._state, runner, lease, self._insist, watch, self._adapters)
        executing = asyncio.create_task(attempt.run(), name=f"job {lease.job.id}")
        self._running[lease.job.id, lease.fence] = (lease, executing, attempt)
        try:
            await asyncio.wait({executing})
            # An ExecutorLost passes: the lease lapses, and counts, as a job that takes its model down must.
            end = executing.result()
        except LeaseLost:  # somebody else runs it, or it was cancelled
            await asyncio.shield(attempt.undo())
            await self._forget_if_over(lease.job.id)
            return
        except asyncio.CancelledError:
            await cancelled(executing)
            await asyncio.shield(attempt.undo())
            if executing.cancelled() and not _being_cancelled():
                await self._forget_if_over(lease.job.id)
                return
            await asyncio.shield(self._state.queue.give_back(lease, _STOPPED))
            raise
        finally:
            del self._running[lease.job.id, lease.fence]
        await asyncio.shield(self._finish(lease, end, watch, attempt))

    async def _finish(self, lease: Lease, end: Ended, watch: Watch, attempt: Attempt | None = None) -> None:
        job = lease.job
        if await self._insist(lambda: self._state.queue.finish(lease, end)):
            watch.ended(end.state)
            with log.instead_of(Exception, "payload_kept"):  # the collector comes by
                await self._state.results.delete_payload(job.id)
                if job.kind is JobKind.METHOD and end.state is JobState.COMPLETED:
                    await self._state.checkpoints.delete(job.id)
        else:
            if attempt is not None:
                await attempt.undo()
            await self._forget_if_over(job.id)

    async def _forget_if_over(self, job_id: str) -> None:
        """Remove the bytes of a job that was cancelled or deleted while it ran: nobody will ask for them."""
        if await self._insist(lambda: self._state.queue.is_over(job_id)):
            with log.instead_of(Exception, "result_kept"):
                await self._state.results.delete(job_id)

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask Redis, again while it is away, for as long as a few leases. Raises RedisError."""
        until = time.monotonic() + _PATIENCE_LEASES * self._config.lifetimes.lease
        while True:
            try:
                return await ask()
            except AWAY:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(_PAUSE)

    async def _beat(self) -> None:
        """Renew every lease and show that the replica lives."""
        pause = min(HEARTBEAT, self._config.lifetimes.lease / 3)
        while True:
            await self._insist(self._say_alive)
            for lease, executing, attempt in list(self._running.values()):
                if not await self._renew(lease):
                    executing.cancel()
                elif attempt.can_stop and await self._insist(partial(self._state.queue.is_stopping, lease.job.id)):
                    attempt.stop()
            await asyncio.sleep(pause)

    async def _heed_cancellations(self) -> None:
        """Stop jobs at once that somebody cancels. One that is missed is found when its lease is to be renewed."""
        while True:
            with contextlib.suppress(*AWAY):
                async for job_id, gently in self._state.queue.cancelled():
                    self._stop(job_id, gently=gently)
            await asyncio.sleep(_PAUSE)

    def _stop(self, job_id: str, *, gently: bool = False) -> None:
        """Cancel what runs here of a job; gently: let it end with what it has."""
        for lease, executing, attempt in list(self._running.values()):
            if lease.job.id == job_id and gently:
                attempt.stop()
            elif lease.job.id == job_id:
                executing.cancel()

    async def _renew(self, lease: Lease) -> bool:
        return await self._insist(lambda: self._state.queue.renew(lease))

    async def _say_alive(self) -> None:
        holder = self._executor.holder()
        sign = SignOfLife(
            id=self._name,
            state=ModelState.READY if self._ready else ModelState.DEPLOYING,
            pid=os.getpid(),
            node=socket.gethostname(),
            resident_bytes=proc.resident_bytes(holder),
            holder=holder,
            running=len(self._running),
        )
        await self._state.models.beat(self._key, sign)
        await self._telemetry.publish(ready=self._ready, running=len(self._running), resident_bytes=sign.resident_bytes)


async def give_up(state: State, key: ModelKey, reason: str) -> None:
    """Say why a replica of the model does not come; if there is no other, end the jobs that wait."""
    hosted = await state.models.find(key)
    if hosted.state is ModelState.READY:
        return
    await state.models.publish(hosted.card.model_copy(update={"failure": reason}))
    await state.queue.fail_waiting(key, f"{key} could not be loaded on this server: {reason}")


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
