"""Several jobs of one tenant in one child, which merges what can be merged: see `child/merging/merged.py`.

Each job has a seat, which is an executor for one run. The seats wait for each other, then share a child; each has its
own pipes, result and end. The child says DONE of a job or nothing that counts: whatever else becomes of it there, it is
Apart, and runs alone later. So a job that fails, is over a limit or takes the child with it spoils none.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from interlace.protocol.frames import Frame
from interlace.protocol.job import Cost, Job
from interlace_workers.executors.base import Apart, Done, Failed, Happening, Printed, Runner, Sealed, Started, Step
from interlace_workers.executors.cgroup import JobGroup
from interlace_workers.executors.execution import Execution, memory_of, order_of, send_order
from interlace_workers.executors.fork import ForkExecutor
from interlace_workers.executors.memory import MemoryWatch
from interlace_workers.executors.zygote_process import Child, Exit, NoChild
from interlace_workers.replicas import metrics

#: A child that has merged for so long is ended, and its jobs run apart: one of them may never end.
_PATIENCE = 30.0  # seconds
_LOOK = 0.05  # seconds between two looks at what the child uses


class Share(Execution):
    """One job's part in a child that it shares: its own pipes and result, and no say over the child's life."""

    def __init__(self, child: Child, job: Job, members: int, memory: JobGroup | MemoryWatch) -> None:
        super().__init__(child, job, memory)
        self._members = members
        #: Jobs in its forward, itself included, as the child says.
        self._merged = members

    async def _guard(self) -> None:
        """The party keeps the limits."""

    def close(self) -> None:
        self._events.close()
        self._logs.close()
        self._values.close()

    def _started_by(self, frame: Frame) -> Started:
        said = int(frame.body) if frame.body.isdigit() and len(frame.body) < 4 else 0
        self._merged = min(max(1, said), self._members)
        return Started()

    def _cost(self, exit: Exit | None = None) -> Cost:
        cost = super()._cost(exit)
        seconds = round((cost.cpu_seconds or 0.0) / self._members, 4)
        return cost.model_copy(update={"cpu_seconds": seconds, "merged": self._merged})


@dataclass(eq=False)
class _Guest:
    """A job that has taken its seat."""

    job: Job
    payload: bytes
    result: Path
    adapters: Sequence[Sealed] = ()
    share: Share | None = None


class Party:
    """Jobs that are to share a child."""

    def __init__(self, executor: ForkExecutor, seats: int) -> None:
        self._executor = executor
        self._awaited = seats
        self._guests: list[_Guest] = []
        self._opening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._child: Child | None = None
        self._fork: Step | None = None
        self._reason = "finished"

    def seats(self) -> list[Runner]:
        return [Seat(self) for _ in range(self._awaited)]

    @property
    def executor(self) -> ForkExecutor:
        return self._executor

    def come(self, guest: _Guest | None) -> None:
        """A seat is taken, or will not be (None). The last one opens the party."""
        if guest is not None:
            self._guests.append(guest)
        self._awaited -= 1
        if self._awaited == 0 and self._guests:
            self._tasks.append(asyncio.create_task(self._open(), name="party"))

    async def opened(self) -> None:
        """Wait until all have come and the child has its orders. Raises ExecutorLost."""
        await asyncio.shield(self._opening)

    def leave(self, guest: _Guest, *, ended: bool) -> None:
        """A guest has its end, or nobody wants it any more: then the child must stop, whoever else is in it."""
        if guest not in self._guests:
            return
        self._guests.remove(guest)
        if guest.share is not None:
            guest.share.close()
        if self._child is None:
            return
        if not ended:
            self._reason = "closed"
            self._child.kill()
        if not self._guests:
            self._close(self._child)

    def _close(self, child: Child) -> None:
        for task in self._tasks:
            task.cancel()
        if self._reason == "finished":
            child.end()
        else:
            child.kill()
            child.close()
        metrics.SANDBOX_KILLS.labels(self._reason).inc()
        self._executor.fork_ahead()
        self._child = None

    async def _open(self) -> None:
        try:
            if len(self._guests) > 1:
                await self._start()
        except Exception as error:  # noqa: BLE001 - whoever waits for it raises it
            self._opening.set_exception(error)
            self._opening.exception()  # they may all have gone
        else:
            self._opening.set_result(None)

    async def _start(self) -> None:
        adapters = self._guests[0].adapters
        if any(_identities(guest.adapters) != _identities(adapters) for guest in self._guests):
            raise Apart
        asked = time.time()
        try:
            child = await self._executor.take_spare()
        except NoChild:  # each learns alone whether there is one for it
            raise Apart from None
        self._fork = Step("fork", asked, time.time())
        if len(self._guests) < 2:  # the others have been cancelled meanwhile
            child.kill()
            child.close()
            self._executor.fork_ahead()
            return
        self._child = child
        guests = list(self._guests)
        threads = self._executor.threads
        memory = memory_of(child, max(guest.job.limits.memory_bytes for guest in guests))
        with contextlib.ExitStack() as stack:
            fds: list[int] = []
            for guest in guests:
                guest.share = Share(child, guest.job, len(guests), memory)
                fds += stack.enter_context(guest.share.descriptors(guest.payload, guest.result))
            orders = [order_of(guest.job, threads, adapters).as_message() for guest in guests]
            send_order(child, {"orders": orders}, [*fds, *(one.file.fileno() for one in adapters)])
        self._tasks.append(asyncio.create_task(self._guard(child, guests, memory), name="guard"))
        self._executor.fork_ahead()  # meanwhile: what it takes is little beside a forward of many

    async def _guard(self, child: Child, guests: list[_Guest], memory: JobGroup | MemoryWatch) -> None:
        """End the child once it holds more or takes longer than it may; its jobs see its end, and run apart."""
        until = time.monotonic() + min(_PATIENCE, *(guest.job.limits.wall_seconds for guest in guests))
        while (left := until - time.monotonic()) > 0:
            if isinstance(memory, MemoryWatch) and memory.is_over():
                break
            await asyncio.sleep(min(_LOOK, left))
        self._reason = "closed"
        child.kill()

    def with_fork(self, done: Done) -> Done:
        return done if self._fork is None else replace(done, steps=(self._fork, *done.steps))


def _identities(adapters: Sequence[Sealed]) -> list[tuple[object, ...]]:
    return [one.identity for one in adapters]


class Seat:
    """Runs one job of a party."""

    def __init__(self, party: Party) -> None:
        self._party = party
        self._came = False

    def cut_short(self, job_id: str) -> None:
        """No method comes to a party."""

    def give_up(self) -> None:
        """The job does not come, or has ended: nobody waits for it. May be called in any case."""
        if not self._came:
            self._came = True
            self._party.come(None)

    async def run(
        self, job: Job, payload: bytes, result: Path, adapters: Sequence[Sealed] = ()
    ) -> AsyncGenerator[Happening, None]:
        """As `Runner.run`. All jobs of a party have the same adapters."""
        guest = _Guest(job, payload, result, adapters)
        if not self._came:
            self._came = True
            self._party.come(guest)
        ended = False
        try:
            await self._party.opened()
            if guest.share is None:
                run = self._party.executor.run(job, payload, result, adapters)
            else:
                run = guest.share.happenings()
            printed: list[Printed] = []
            async with contextlib.aclosing(run) as happenings:
                async for happening in happenings:
                    if guest.share is None or isinstance(happening, Started):
                        yield happening
                    elif isinstance(happening, Printed):
                        printed.append(happening)  # told once it is done here, and not twice
                    elif isinstance(happening, Done):
                        ended = True
                        self._party.executor.fork_ahead()  # the forward is over
                        for one in printed:
                            yield one
                        yield self._party.with_fork(happening)
                    else:
                        # It said so itself, and the others go on; or it has broken something.
                        ended = isinstance(happening, Failed) and happening.reason == "raised"
                        raise Apart
        finally:
            self._party.leave(guest, ended=ended)


class MergingExecutor(ForkExecutor):
    """A fork executor that runs jobs of one tenant together, too."""

    def party(self, seats: int) -> list[Runner]:
        return Party(self, seats).seats()
