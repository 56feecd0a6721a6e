"""The fork executor: each job runs in a fresh copy-on-write child of the zygote, forked ahead of need."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path

from interlace.protocol.job import Cost, Job
from interlace_state import log
from interlace_workers.executors.base import Done, ExecutorLost, Failed, Happening, LoadFailed, Sealed, Started, Step
from interlace_workers.executors.cgroup import JobGroups
from interlace_workers.executors.execution import Execution, order_of
from interlace_workers.executors.memory import MemoryWatch
from interlace_workers.executors.spare import Spare
from interlace_workers.executors.zygote_process import Child, NoChild, Unsealed, ZygoteProcess
from interlace_workers.order import Load, Loaded
from interlace_workers.replicas import metrics

#: A process that ends while it loads may have been killed for another's fault; after so many it is the model's.
_LOADS = 3
_NO_CHILD = (
    "The server has no process for your job at the moment ({}). Nothing is wrong with your code; run it again later. "
    "Its operator can raise what bounds processes, descriptors and memory on the worker's machine (`pids.max`, "
    "`ulimit -u`, `ulimit -n`), or host with fewer `slots`."
)


class ForkExecutor:
    """Runs each job in a child of one zygote, with one child always forked ahead."""

    def __init__(self, load: Load, zygote: ZygoteProcess | None = None) -> None:
        """``zygote``: one that loads this already; default: one is started."""
        self._load = load
        self._zygote = zygote
        self._groups: JobGroups | None = None
        self._spare: Spare | None = None
        #: Bytes that a child holds while it waits, a warm one and another; all of a kind have done the same until then.
        self._held: dict[bool, int] = {}
        self._running: dict[str, Execution] = {}

    async def start(self) -> Loaded:
        self._groups = JobGroups.open()
        for _ in range(_LOADS):
            if self._zygote is None:
                self._zygote = await self.find_zygote()
            try:
                loaded = await self._zygote.loaded()
                await self._zygote.settle(await self._zygote.fork())
                self.fork_ahead()
            except (NoChild, Unsealed) as error:
                raise LoadFailed(str(error)) from None
            except ExecutorLost as error:
                log.warning("load_interrupted", error=str(error))
                await self._zygote.stop()
                self._zygote = self._spare = None
            else:
                return loaded
        raise LoadFailed(f"its process ended {_LOADS} times while loading (out of memory?)")

    async def find_zygote(self) -> ZygoteProcess:
        """A process that loads the model, or has loaded it."""
        return ZygoteProcess.start(self._load)

    async def run(
        self, job: Job, payload: bytes, result: Path, adapters: Sequence[Sealed] = ()
    ) -> AsyncGenerator[Happening, None]:
        asked = time.time()
        try:
            child = await self.take_spare()
        except NoChild as error:
            yield Failed(_NO_CHILD.format(error), Cost(), reason="refused")
            return
        fork = Step("fork", asked, time.time())
        reason = "closed"
        try:
            with contextlib.closing(Execution(child, job)) as execution:
                self._running[job.id] = execution
                execution.order(order_of(job, self.threads, adapters), payload, result, adapters)
                async with contextlib.aclosing(execution.happenings()) as happenings:
                    async for happening in happenings:
                        if isinstance(happening, Started):
                            self.fork_ahead()  # not sooner: a fork keeps a core from a job that is being read
                        if isinstance(happening, (Done, Failed)):
                            reason = happening.reason if isinstance(happening, Failed) else "finished"
                            happening = replace(happening, steps=(fork, *happening.steps))
                        yield happening
        finally:
            self._running.pop(job.id, None)
            metrics.SANDBOX_KILLS.labels(reason).inc()
            self.fork_ahead()

    def cut_short(self, job_id: str) -> None:
        if job_id in self._running:
            self._running[job_id].stop()

    def give_up(self) -> None:
        """Nobody waits."""

    def holder(self) -> int:
        return self._zygote.pid if self._zygote else 0

    async def lost(self) -> None:
        assert self._zygote is not None, "start() comes first"
        await self._zygote.lost()

    async def stop(self) -> None:
        if self._spare is not None:
            await self._spare.close()
        if self._zygote is not None:
            await self._zygote.stop()
        if self._groups is not None:
            self._groups.close()

    @property
    def threads(self) -> int:
        """Processor threads that a child may use."""
        return self._load.threads

    def fork_ahead(self) -> None:
        """Have a child forked, unless one is: beside a job, so that the next job finds it sealed and perhaps warm."""
        assert self._zygote is not None, "start() comes first"
        if self._spare is None:
            self._spare = Spare(self._fork(self._zygote))

    async def _fork(self, zygote: ZygoteProcess) -> Child:
        with metrics.SANDBOX_START_SECONDS.time():
            child = await zygote.fork()
        if self._groups is not None:
            try:
                with contextlib.suppress(OSError):  # then it is watched
                    child.group = await asyncio.to_thread(self._groups.add, child.pid)
            except BaseException:
                child.kill()
                child.close()
                raise
        metrics.SANDBOX_STARTS.inc()
        return child

    async def take_spare(self) -> Child:
        """A child that waits for its order, the caller's from now on. Raises ExecutorLost, NoChild."""
        try:
            child = await self._take()
        except NoChild:  # it may have been refused long ago, or have ended since
            child = await self._take()
        if child.group is None:
            # One that still rehearses is let have what it would hold at the end.
            child.watch = MemoryWatch(child.pid, child.memory, self._held.get(child.is_warm is not False))
            if child.is_warm is not None:
                self._held[child.is_warm] = child.watch.held
        return child

    async def _take(self) -> Child:
        self.fork_ahead()
        assert self._spare is not None
        spare, self._spare = self._spare, None
        return await spare.take()
