"""One job in one child: its order and descriptors, what it says and prints, its limits, how it ended."""

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from interlace.protocol import frames
from interlace.protocol.errors import LimitExceeded
from interlace.protocol.frames import BrokenFrame, Frame, FrameKind
from interlace.protocol.job import Cost, Job
from interlace_workers import channel, steps
from interlace_workers.executors import proc
from interlace_workers.executors.base import Done, ExecutorLost, Failed, Happening, Printed, Sealed, Started, Step
from interlace_workers.executors.cgroup import JobGroup
from interlace_workers.executors.given import Outbox
from interlace_workers.executors.memory import MemoryWatch
from interlace_workers.executors.pace import Gallery, Pace, Told
from interlace_workers.executors.pipe import Pipe
from interlace_workers.executors.values import Inlet
from interlace_workers.executors.zygote_process import Child, Exit
from interlace_workers.order import Order

_NEARLY = 0.8  # of its processor time: the kernel keeps the limit by ticks, a tenth of a second of each off
_LOOK = 0.05  # seconds between two looks at what a job uses
_LONGEST_LINE = 16 << 10  # bytes
#: How long the last output of a job that has said how it ended may take to arrive.
_LAST_WORDS_SECONDS = 1.0
_BEGIN_SECONDS = 0.05  # that output waits for the word that the job has begun
#: Happenings that may wait for whoever records them; a job that prints faster waits, too.
_AHEAD = 64
#: What an empty line counts against the limit of output, for it costs an event like any other.
_LEAST_LINE = 64  # bytes
#: What a job tells between its start and its end.
_NEWS = frozenset(FrameKind) - {FrameKind.RUNNING, FrameKind.DONE, FrameKind.FAILED}
#: What may have led to a signal. An abort of process 1, which a job is, ends in SIGSEGV.
_SIGNALS = {
    "SIGABRT": " (an abort of native code)",
    "SIGKILL": " (most likely it used more memory than the machine has)",
    "SIGSEGV": " (a crash or an abort of native code)",
}


class Execution:
    """One job in one child: hands the order over, listens, keeps the limits."""

    def __init__(self, child: Child, job: Job, memory: JobGroup | MemoryWatch | None = None) -> None:
        """``memory`` is what counts the child's, where others of its jobs have it already."""
        limits = job.limits
        self._child = child
        self._job = job
        self._limits = limits
        self._resident_at_start = proc.resident_bytes(child.pid)
        self._memory = memory or memory_of(child, limits.memory_bytes)
        #: Processor time after which the kernel kills the child.
        self._cpu_seconds = math.inf
        self._stopped: Failed | None = None
        self._has_said_how = False
        self._started, self._started_at = time.monotonic(), time.time()
        self._events, self._logs = Pipe(), Pipe()
        self._values = Inlet(limits)
        self._outbox = Outbox(job.method.allowance) if job.method is not None else None
        self._stopping: asyncio.TimerHandle | None = None
        self._told, self._gallery = Told(), Gallery()
        self._unread = Pace(period=0.001, burst=10_000, silence=0.0)
        self._happened: asyncio.Queue[Happening | Exception] = asyncio.Queue(_AHEAD)
        self._log_bytes_left = limits.log_bytes
        self._begun = asyncio.Event()

    def order(self, order: Order, payload: bytes, result: Path, adapters: Sequence[Sealed] = ()) -> None:
        """Give the child its job; what it reads and writes travels as descriptors. Raises ExecutorLost."""
        self._cpu_seconds = order.cpu_seconds
        with self.descriptors(payload, result) as fds:
            sealed = [one.file.fileno() for one in adapters]
            if self._outbox is None:
                files = [self._values.open(result.parent)]
            else:
                order, files = replace(order, method=self._outbox.order), self._outbox.open(result.parent)
            send_order(self._child, order.as_message(), [*fds, *files, *sealed])

    def stop(self) -> None:
        """Ask a method to end with what it has, and end it a while later."""
        assert self._job.method is not None
        if self._stopping is not None:
            return
        grace = self._job.method.allowance.cancel_grace
        why = f"The job was cancelled, and did not end within {grace:g} s (`methods.cancel_grace`)."
        self._stopping = asyncio.get_running_loop().call_later(grace, self._stop, "cancelled", why)
        if self._begun.is_set():
            self._child.ask_to_stop()

    @contextlib.contextmanager
    def descriptors(self, payload: bytes, result: Path) -> Iterator[list[int]]:
        """What goes to the child beside its order: payload, result, events, logs. Ours are closed afterwards."""
        with open(os.memfd_create("payload", os.MFD_CLOEXEC), "w+b") as source, open(result, "r+b") as target:
            source.write(payload)
            source.flush()
            os.lseek(source.fileno(), 0, os.SEEK_SET)
            yield [source.fileno(), target.fileno(), self._events.write_end, self._logs.write_end]
        self._events.close_write_end()
        self._logs.close_write_end()

    async def happenings(self) -> AsyncGenerator[Happening, None]:
        """What happens, as it happens; Done or Failed comes last."""
        logs = asyncio.create_task(self._read_logs(), name="logs")
        events = asyncio.create_task(self._read_events(logs), name="events")
        guard = asyncio.create_task(self._guard(), name="guard")
        try:
            while True:
                happening = await self._happened.get()
                if isinstance(happening, Exception):
                    raise happening
                yield happening
                if isinstance(happening, (Done, Failed)):
                    return
        finally:
            guard.cancel()
            if not (logs.done() and events.done()):
                logs.cancel()
                events.cancel()
                await asyncio.gather(guard, logs, events, return_exceptions=True)

    async def _guard(self) -> None:
        """Kill the child once it is over its time or its memory, whatever it and our own readers do."""
        until = self._started + self._limits.wall_seconds
        while (left := until - time.monotonic()) > 0:
            if isinstance(self._memory, MemoryWatch) and self._memory.is_over():  # a group needs nobody to look
                self._stop("memory_bytes", self._too_much())
                return
            await asyncio.sleep(min(_LOOK, left))
        self._stop(
            "wall_seconds",
            f"The job ran for {self._limits.wall_seconds:g} s, its limit, and was stopped. Do less in one job, or ask "
            "the operator to raise `limits.wall_seconds`, at once: `interlace admin limits TENANT wall_seconds=N`.",
        )

    def _too_much(self) -> str:
        return (
            f"The job held more than {self._limits.memory_bytes:,} bytes of memory over the model's own, its limit, "
            "and was stopped. Hold less at a time, or ask the operator to raise `limits.memory_bytes`, at once: "
            "`interlace admin limits TENANT memory_bytes=N`."
        )

    def _too_busy(self) -> str:
        return (
            f"The job's threads used {self._cpu_seconds:g} s of processor time together, their limit, and it was "
            "stopped. Use fewer threads, do less in one job, or ask the operator to raise what the limit follows: "
            f"`limits.wall_seconds` ({self._limits.wall_seconds:g} s), `models[].threads`."
        )

    def _stop(self, limit: str, why: str) -> None:
        self._stopped = self._failed(why, limit)
        self._child.kill()

    def close(self) -> None:
        """End the child, if it has not ended, and let go of it."""
        if not self._has_said_how:
            self._child.kill()
        if self._stopping is not None:
            self._stopping.cancel()
        self._events.close()
        self._logs.close()
        self._values.close()
        if self._outbox is not None:
            self._outbox.close()
        if self._has_said_how:
            self._child.end()
        else:
            self._child.close()

    async def _read_events(self, logs: "asyncio.Task[None]") -> None:
        """Follow the child's frames to how it ended, or to an error of ours."""
        end: Happening | Exception
        try:
            end = await self._read_to_the_end(logs)
        except Exception as error:  # noqa: BLE001 - it is raised where the end is waited for
            end = error
        await self._happened.put(end)

    async def _read_to_the_end(self, logs: "asyncio.Task[None]") -> Done | Failed:
        reader = frames.FrameReader()
        started = False
        try:
            async for data in self._events.chunks():
                for frame in reader.feed(data):
                    if frame.kind in _NEWS:
                        if not started:
                            raise BrokenFrame("news of a job that has not started")
                        if (news := self._read_news(frame)) is not None:
                            await self._happened.put(news)
                        elif not self._unread.lets_through():
                            raise BrokenFrame("more words than the job's own code says")
                        continue
                    if frame.kind is not FrameKind.RUNNING:
                        if not logs.done():
                            await asyncio.wait({logs}, timeout=_LAST_WORDS_SECONDS)
                        return self._ended(frame)
                    if started:
                        raise BrokenFrame("a job starts once")
                    started = True
                    await self._happened.put(self._started_by(frame))
                    self._begun.set()
                    if self._stopping is not None:
                        self._child.ask_to_stop()
        except LimitExceeded as error:  # forged: the child's own code stops before
            return self._failed(str(error), "broken_frame")
        except BrokenFrame:
            return self._failed("The job wrote to the channel that reports its end; it was stopped.", "broken_frame")
        exit = await self._child.exited if self._stopped is None else None
        stopped = self._stopped  # by now: a job may close its events, and go on
        await asyncio.wait({logs}, timeout=_LAST_WORDS_SECONDS)
        if stopped is not None:
            return stopped
        assert exit is not None
        if self._memory.is_over():
            return Failed(text=self._too_much(), cost=self._cost(exit), reason="memory_bytes")
        if exit.code == -signal.SIGKILL and exit.cpu_seconds >= _NEARLY * self._cpu_seconds:
            return Failed(text=self._too_busy(), cost=self._cost(exit), reason="wall_seconds")
        return Failed(text=_died(exit.code), cost=self._cost(exit), reason="died", crashed=exit.code < 0)

    def _read_news(self, frame: Frame) -> Happening | None:
        """What a frame tells that is no end; None for what came too soon. Raises BrokenFrame, LimitExceeded."""
        if frame.kind is FrameKind.PROGRESS:
            return self._told.take(frame.body)
        if self._outbox is None:
            if frame.kind is FrameKind.VALUE:
                return self._values.take(frame.body)
        elif frame.kind is FrameKind.ARTIFACT:
            return self._outbox.given(frame.body)
        elif frame.kind is FrameKind.CHECKPOINT:
            return self._outbox.kept(frame.body)
        elif frame.kind is FrameKind.PICTURE:
            return self._gallery.take(frame.body)
        raise BrokenFrame(f"{frame.kind.name} of a {self._job.kind}")

    def _started_by(self, frame: Frame) -> Started:
        return Started()

    def _ended(self, frame: Frame) -> Done | Failed:
        self._has_said_how = True
        if frame.kind is FrameKind.DONE:
            return Done(cost=self._cost(), steps=self._steps(frame.body))
        return self._failed(frame.body.decode(errors="backslashreplace"))

    async def _read_logs(self) -> None:
        rest = b""
        async for data in self._logs.chunks():
            # The two pipes are read in any order; what is printed while the payload is read does come first.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BEGIN_SECONDS):
                    await self._begun.wait()
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            await self._print(lines)
        await self._print([rest] if rest else [])

    async def _print(self, lines: list[bytes]) -> None:
        kept = []
        for line in lines:
            if self._log_bytes_left < 0:
                break
            self._log_bytes_left -= max(len(line), _LEAST_LINE)
            text = line[:_LONGEST_LINE].decode(errors="replace")
            if self._log_bytes_left < 0:
                text = f"[output is over {self._limits.log_bytes:,} bytes (`limits.log_bytes`); the rest is dropped]"
            kept.append(text)
        if kept:
            await self._happened.put(Printed(lines=tuple(kept)))

    def _steps(self, told: bytes) -> tuple[Step, ...]:
        """What the child says of its time, laid end to end from the order on; nothing if that cannot be true."""
        at, found = self._started_at, []
        for name, seconds in steps.decode(told, time.monotonic() - self._started):
            found.append(Step(name, at, at + seconds))
            at += seconds
        return tuple(found)

    def _failed(self, text: str, reason: str = "raised") -> Failed:
        return Failed(text=text, cost=self._cost(), reason=reason)

    def _cost(self, exit: Exit | None = None) -> Cost:
        """What the child has used so far, or had used at its end."""
        pid = self._child.pid
        peak = exit.peak_bytes if exit else proc.peak_resident_bytes(pid)
        used = exit.cpu_seconds if exit else proc.cpu_seconds(pid)
        return Cost(
            runtime=round(time.monotonic() - self._started, 4),
            cpu_seconds=round(max(0.0, used - self._child.cpu_before), 4),
            max_memory_usage=max(0, peak - self._resident_at_start),
        )


def send_order(child: Child, message: dict[str, Any], fds: list[int]) -> None:
    """Raises ExecutorLost."""
    try:
        channel.send(child.order, message, fds)
    except OSError as error:
        raise ExecutorLost(f"the child that was forked ahead does not take its order: {error}") from None


def order_of(job: Job, threads: int, adapters: Sequence[Sealed] = ()) -> Order:
    """A job as its child sees it."""
    return Order(
        compress=job.compress,
        env=job.env,
        memory_bytes=job.limits.memory_bytes,
        unpacked_bytes=job.limits.unpacked_bytes,
        result_bytes=job.limits.result_bytes,
        raw=job.raw,
        streamed_values=job.limits.streamed_values,
        offered_bytes=_offered(job),
        # The parent keeps the wall time; this is for the case that it cannot.
        cpu_seconds=1 + job.limits.wall_seconds * (1 + threads),
        adapters=tuple(one.adapter for one in adapters),
    )


def _offered(job: Job) -> int:
    """Bytes of what is saved that may stream: all if its client has asked, little if one waits that cannot ask."""
    if job.stream_saves:
        return job.limits.result_bytes
    return min(job.limits.unasked_bytes, job.limits.result_bytes - 1) if job.session_id else 0


def memory_of(child: Child, most_bytes: int) -> JobGroup | MemoryWatch:
    """What says whether the child holds more than it may: the kernel, where it counts, or we look."""
    if child.group is not None:
        with contextlib.suppress(OSError):
            child.group.limit(most_bytes)
            return child.group
    watch = child.watch or MemoryWatch(child.pid, child.memory)
    watch.limit(most_bytes)
    return watch


def _died(code: int) -> str:
    if code >= 0:
        return f"Your code ended its process with exit code {code}; nothing was saved."
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = _SIGNALS.get(name, "")
    return f"Your code's process was ended by {name}{hint}; nothing was saved."
