"""The resident executor: jobs of trusted tenants in the process that owns the model, which is replaced when spoiled."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from interlace.protocol.job import Cost, Job
from interlace_state import log
from interlace_workers.executors import proc
from interlace_workers.executors.base import (
    Done,
    ExecutorLost,
    Failed,
    Happening,
    LoadFailed,
    Runner,
    Sealed,
    Started,
    Step,
)
from interlace_workers.executors.execution import Execution, order_of
from interlace_workers.executors.zygote_process import Child, ZygoteProcess
from interlace_workers.order import Load, Loaded
from interlace_workers.replicas import metrics

#: A process that ends while it loads may have been killed for another's fault; after so many it is the model's.
_LOADS = 3


@dataclass
class _Lodger(Child):
    """A job's hold on the process that owns the model, which outlives a job that ends by itself."""

    has_ended: bool = False

    def kill(self) -> None:
        if not self.has_ended:
            super().kill()

    def end(self) -> None:
        self.kill()
        self.close()


class ResidentExecutor:
    """Runs one job after another in one process, which no layer protects from them."""

    def __init__(self, load: Load, trusted: tuple[str, ...], zygote: ZygoteProcess | None = None) -> None:
        """``trusted``: tenants whose jobs may run here. ``zygote``: a process that loads this already."""
        self._load = load
        self._trusted = trusted
        self._zygote = zygote
        self._loaded: Loaded | None = None
        self._turn = asyncio.Lock()
        self._running: dict[str, Execution] = {}

    async def start(self) -> Loaded:
        for _ in range(_LOADS):
            if self._zygote is None:
                self._zygote = ZygoteProcess.start(self._load)
            try:
                self._loaded = await self._zygote.loaded()
            except ExecutorLost as error:
                log.warning("load_interrupted", error=str(error))
                await self._forget()
            else:
                return self._loaded
        raise LoadFailed(f"its process ended {_LOADS} times while loading (out of memory?)")

    async def run(
        self, job: Job, payload: bytes, result: Path, adapters: Sequence[Sealed] = ()
    ) -> AsyncGenerator[Happening, None]:
        if job.tenant not in self._trusted:
            yield Failed(
                "This model's jobs run unprotected in the process that holds it, and only for tenants that its "
                "operator trusts (`models[].trusted`); yours is not one of them.",
                Cost(),
            )
            return
        async with self._turn:
            asked = time.time()
            child = await self._admit()
            began = Step("fork", asked, time.time())
            reason, started = "closed", False
            try:
                with contextlib.closing(Execution(child, job)) as execution:
                    self._running[job.id] = execution
                    execution.order(order_of(job, self._load.threads, adapters), payload, result, adapters)
                    async with contextlib.aclosing(execution.happenings()) as happenings:
                        async for happening in happenings:
                            started = started or isinstance(happening, Started)
                            if isinstance(happening, (Done, Failed)):
                                reason = happening.reason if isinstance(happening, Failed) else "finished"
                                child.has_ended = reason in ("finished", "raised")
                                happening = replace(happening, steps=(began, *happening.steps))
                            yield happening
            except ExecutorLost:
                if not started:
                    raise
                reason = "died"
                yield Failed("The process that holds the model ended while your job ran in it.", Cost(), reason="died")
            finally:
                self._running.pop(job.id, None)
                metrics.SANDBOX_KILLS.labels(reason).inc()

    def party(self, seats: int) -> list[Runner]:
        """Each alone, in turn: jobs do not share a forward here."""
        return [self] * seats

    def cut_short(self, job_id: str) -> None:
        if job_id in self._running:
            self._running[job_id].stop()

    def give_up(self) -> None:
        """Nobody waits."""

    def holder(self) -> int:
        return self._zygote.pid if self._zygote else 0

    async def lost(self) -> None:
        """Never: the next job replaces a process that has ended."""
        await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        await self._forget()

    async def _admit(self) -> _Lodger:
        """The process, ready for an order; a new one where the last has ended. Raises ExecutorLost."""
        assert self._zygote is not None, "start() comes first"
        try:
            child = await self._zygote.fork()
        except ExecutorLost:
            log.warning("resident_replaced", pid=self._zygote.pid)
            await self._forget()
            try:
                await self.start()
            except LoadFailed as error:
                raise ExecutorLost(f"the model cannot be loaded again: {error}") from None
            child = await self._zygote.fork()
        proc.reset_peak(child.pid)
        return _Lodger(**vars(child) | {"cpu_before": proc.cpu_seconds(child.pid)})

    async def _forget(self) -> None:
        if self._zygote is not None:
            zygote, self._zygote = self._zygote, None
            await zygote.stop()
