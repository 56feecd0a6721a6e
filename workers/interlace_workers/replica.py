"""One copy of a model at work: pull jobs, run each in a sandbox, record what happens.

A plain asyncio program, which a Ray Serve deployment wraps or which runs as a process of its own.
"""

import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path

from redis.exceptions import RedisError

from interlace.protocol.errors import UnknownJob
from interlace.protocol.event import Ended, Event, Log, StateChanged
from interlace.protocol.job import Job, JobState
from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.models import HEARTBEAT, ModelState
from interlace_state.models import Replica as SignOfLife
from interlace_state.queue import Lease
from interlace_state.store import State
from interlace_workers.executors.base import (
    Done,
    Executor,
    ExecutorLost,
    Failed,
    LoadFailed,
    Printed,
    Started,
)

#: A job that this many workers have lost is not given to another.
_MOST_ATTEMPTS = 3


class Replica:
    """Runs up to ``slots`` jobs of one model at a time."""

    def __init__(
        self, config: Config, state: State, key: ModelKey, executor: Executor, *, name: str, slots: int
    ) -> None:
        self._config = config
        self._state = state
        self._key = key
        self._executor = executor
        self._name = name
        self._slots = slots
        self._ready = asyncio.Event()
        self._leases: dict[str, Lease] = {}

    async def serve(self, stop: asyncio.Event) -> None:
        """Load the model, work until ``stop``, let running jobs end.

        Raises LoadFailed, or ExecutorLost when the model's process is gone; in both cases no job is left leased.
        """
        beating = asyncio.create_task(self._beat(), name="heartbeat")
        try:
            await self._startup()
            await self._main_loop(stop, beating)
        finally:
            beating.cancel()
            await self._shutdown()

    async def ready(self) -> None:
        """Wait until jobs are pulled."""
        await self._ready.wait()

    async def _startup(self) -> None:
        try:
            loaded = await self._executor.start()
        except LoadFailed as error:
            await self._give_up(str(error))
            raise
        hosted = await self._state.models.find(self._key)
        facts = {"n_params": loaded.n_params, "size_bytes": loaded.size_bytes, "failure": None}
        await self._state.models.publish(hosted.card.model_copy(update=facts))
        await self._state.models.publish_environment(
            {"python_version": loaded.python_version, "packages": loaded.packages}
        )
        self._ready.set()
        await self._say_alive()

    async def _main_loop(self, stop: asyncio.Event, beating: "asyncio.Task[None]") -> None:
        slots = [asyncio.create_task(self._work(stop), name=f"slot {slot}") for slot in range(self._slots)]
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait([stopping, beating, *slots], return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await asyncio.wait(slots, timeout=self._config.gateway.drain_seconds)
            for working in (beating, *slots):
                if working.done():
                    working.result()
        finally:
            for task in (stopping, *slots):
                task.cancel()
            await asyncio.gather(stopping, *slots, return_exceptions=True)

    async def _shutdown(self) -> None:
        await self._executor.stop()
        with contextlib.suppress(RedisError):  # then the sign of life runs out by itself
            await self._state.models.leave(self._key, self._name)

    async def _work(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if lease := await self._state.queue.lease(self._key, self._name):
                self._leases[lease.job.id] = lease
                try:
                    await self._run(lease)
                finally:
                    del self._leases[lease.job.id]

    async def _run(self, lease: Lease) -> None:
        """Run one job to its end, or give it back whole."""
        if lease.attempt > _MOST_ATTEMPTS:
            await self._end_lost(lease)
            return
        try:
            end = await self._execute(lease.job)
        except (ExecutorLost, asyncio.CancelledError):
            await asyncio.shield(self._state.queue.give_back(lease, "The worker stopped; the job waits for another."))
            raise
        await asyncio.shield(self._finish(lease, end))

    async def _execute(self, job: Job) -> Ended:
        leased = StateChanged(state=JobState.LEASED, text="Your job has been sent to the model.")
        await self._state.events.append(job.id, leased)
        queued_seconds = round(max(0.0, time.time() - job.submitted_at), 4)
        try:
            payload = await self._state.results.payload(job)
        except UnknownJob as error:
            return Ended(state=JobState.ERROR, text=str(error))
        staged = self._state.results.stage()
        try:
            outcome = await self._outcome(job, payload, staged)
            cost = outcome.cost.model_copy(update={"queued_seconds": queued_seconds})
            if isinstance(outcome, Failed):
                return Ended(state=JobState.ERROR, text=outcome.text, cost=cost)
            result = await self._state.results.put(job, staged)
            return Ended(state=JobState.COMPLETED, text="Your job has been completed.", result=result, cost=cost)
        finally:
            staged.unlink(missing_ok=True)

    async def _outcome(self, job: Job, payload: bytes, staged: Path) -> Done | Failed:
        """Run the job and record what happens on the way."""
        async with contextlib.aclosing(self._executor.run(job, payload, staged)) as happenings:
            async for happening in happenings:
                if isinstance(happening, (Done, Failed)):
                    return happening
                await self._state.events.append(job.id, *_events(happening))
        raise ExecutorLost("the executor said nothing of how the job ended")

    async def _finish(self, lease: Lease, end: Ended) -> None:
        await self._state.queue.finish(lease, end)
        await self._state.results.delete_payload(lease.job.id)

    async def _end_lost(self, lease: Lease) -> None:
        text = f"The job lost its worker {_MOST_ATTEMPTS} times and is not tried again."
        await self._finish(lease, Ended(state=JobState.ERROR, text=text))

    async def _give_up(self, reason: str) -> None:
        """Say why the model does not come, and end the jobs that wait for it."""
        hosted = await self._state.models.find(self._key)
        await self._state.models.publish(hosted.card.model_copy(update={"failure": reason}))
        await self._state.queue.fail_all(self._key, f"{self._key} could not be loaded on this server: {reason}")

    async def _beat(self) -> None:
        """Renew every lease and show that the replica lives."""
        pause = min(HEARTBEAT, self._config.lifetimes.lease / 3)
        while True:
            await self._say_alive()
            for lease in list(self._leases.values()):
                await self._state.queue.renew(lease, self._name)
            await asyncio.sleep(pause)

    async def _say_alive(self) -> None:
        sign = SignOfLife(
            id=self._name,
            state=ModelState.READY if self._ready.is_set() else ModelState.DEPLOYING,
            pid=os.getpid(),
            node=socket.gethostname(),
            resident_bytes=self._executor.resident_bytes(),
            running=len(self._leases),
        )
        await self._state.models.beat(self._key, sign)


def _events(happening: Started | Printed) -> list[Event]:
    if isinstance(happening, Started):
        return [StateChanged(state=JobState.RUNNING, text="Your job has started running.")]
    return [Log(text=line) for line in happening.lines]
