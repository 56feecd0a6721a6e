"""The fork executor: each job runs in a fresh copy-on-write child of the zygote, forked ahead of need."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from interlace.protocol import frames
from interlace.protocol.frames import BrokenFrame, Frame, FrameKind
from interlace.protocol.job import Cost, Job, Limits
from interlace_workers import channel
from interlace_workers.executors import proc
from interlace_workers.executors.base import Done, ExecutorLost, Failed, Happening, Printed, Started
from interlace_workers.executors.zygote_process import Child, ZygoteProcess
from interlace_workers.order import Load, Loaded, Order

_READ = 64 << 10  # bytes
_LONGEST_LINE = 16 << 10  # bytes
#: How long the last output of a job that has said how it ended may take to arrive.
_LAST_WORDS_SECONDS = 1.0


class ForkExecutor:
    """Runs each job in a child of one zygote, with one child always forked ahead."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._zygote: ZygoteProcess | None = None
        self._spare: asyncio.Task[Child] | None = None

    async def start(self) -> Loaded:
        self._zygote = await ZygoteProcess.start(self._load)
        loaded = await self._zygote.loaded()
        self._fork_ahead()
        return loaded

    async def run(self, job: Job, payload: bytes, result: Path) -> AsyncGenerator[Happening, None]:
        child = await self._take_spare()
        execution = Execution(child, job.limits)
        try:
            execution.order(_order(job), payload, result)
            async for happening in execution.happenings():
                yield happening
        finally:
            child.kill()
            execution.close()

    def resident_bytes(self) -> int:
        return proc.resident_bytes(self._zygote.pid) if self._zygote else 0

    async def stop(self) -> None:
        if self._spare is not None:
            self._spare.cancel()
        if self._zygote is not None:
            await self._zygote.stop()

    def _fork_ahead(self) -> None:
        assert self._zygote is not None, "start() comes first"
        self._spare = asyncio.create_task(self._zygote.fork(), name="fork ahead")

    async def _take_spare(self) -> Child:
        assert self._spare is not None, "start() comes first"
        spare = self._spare
        self._fork_ahead()
        child = await spare
        if child.exited.done():
            raise ExecutorLost("the child that was forked ahead has ended")
        return child


class Execution:
    """One job in one child: hands the order over, listens, keeps the limits."""

    def __init__(self, child: Child, limits: Limits) -> None:
        self._child = child
        self._limits = limits
        self._resident_at_start = proc.resident_bytes(child.pid)
        self._started = time.monotonic()
        self._events, self._logs = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        self._open = [*self._events, *self._logs]
        self._happened: asyncio.Queue[Happening] = asyncio.Queue()
        self._log_bytes_left = limits.log_bytes

    def order(self, order: Order, payload: bytes, result: Path) -> None:
        """Give the child its job; payload and result travel as descriptors."""
        source = os.memfd_create("payload", os.MFD_CLOEXEC)
        target = os.open(result, os.O_RDWR | os.O_CLOEXEC)
        try:
            with open(source, "wb", closefd=False) as file:
                file.write(payload)
            os.lseek(source, 0, os.SEEK_SET)
            channel.send(self._child.order, order.as_message(), [source, target, self._events[1], self._logs[1]])
        except OSError as error:
            raise ExecutorLost(f"the child that was forked ahead does not take its order: {error}") from None
        finally:
            for fd in (source, target, self._events[1], self._logs[1]):
                os.close(fd)
            self._open = [self._events[0], self._logs[0]]

    async def happenings(self) -> AsyncIterator[Happening]:
        """What happens, as it happens; Done or Failed comes last."""
        logs = asyncio.create_task(self._read_logs(), name="logs")
        end = asyncio.create_task(self._read_events(logs), name="events")
        try:
            while True:
                happening = await self._next(end)
                yield happening
                if isinstance(happening, (Done, Failed)):
                    return
        finally:
            for task in (logs, end):
                task.cancel()
            await asyncio.gather(logs, end, return_exceptions=True)

    def close(self) -> None:
        for fd in self._open:
            os.close(fd)
        self._child.close()

    async def _next(self, end: "asyncio.Task[None]") -> Happening:
        """The next thing that happens, or the failure that the time is over."""
        left = self._limits.wall_seconds - (time.monotonic() - self._started)
        try:
            async with asyncio.timeout(left):
                getting = asyncio.ensure_future(self._happened.get())
                await asyncio.wait({getting, end}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    return getting.result()
                getting.cancel()
                end.result()  # raises what broke the reader
                return self._happened.get_nowait()
        except TimeoutError:
            getting.cancel()
            return self._failed(
                f"The job ran for {self._limits.wall_seconds:g} s, its limit, and was stopped. Do less in one job, or "
                "ask the operator to raise `limits.wall_seconds`."
            )

    async def _read_events(self, logs: "asyncio.Task[None]") -> None:
        reader = frames.FrameReader()
        try:
            async for data in _chunks(self._events[0]):
                for frame in reader.feed(data):
                    if frame.kind is FrameKind.RUNNING:
                        self._happened.put_nowait(Started())
                        continue
                    await asyncio.wait({logs}, timeout=_LAST_WORDS_SECONDS)
                    self._happened.put_nowait(self._ended(frame))
                    return
        except BrokenFrame:
            self._happened.put_nowait(
                self._failed("The job wrote to the channel that reports its end; it was stopped.")
            )
            return
        code = await self._child.exited
        await asyncio.wait({logs}, timeout=_LAST_WORDS_SECONDS)
        self._happened.put_nowait(self._failed(_died(code)))

    def _ended(self, frame: Frame) -> Done | Failed:
        if frame.kind is FrameKind.DONE:
            return Done(cost=self._cost())
        return self._failed(frame.body.decode(errors="backslashreplace"))

    async def _read_logs(self) -> None:
        rest = b""
        async for data in _chunks(self._logs[0]):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            self._print(lines)
        self._print([rest] if rest else [])

    def _print(self, lines: list[bytes]) -> None:
        kept = []
        for line in lines:
            if self._log_bytes_left < 0:
                break
            self._log_bytes_left -= len(line) + 1
            text = line[:_LONGEST_LINE].decode(errors="replace")
            if self._log_bytes_left < 0:
                text = f"[output is over {self._limits.log_bytes:,} bytes (`limits.log_bytes`); the rest is dropped]"
            kept.append(text)
        if kept:
            self._happened.put_nowait(Printed(lines=tuple(kept)))

    def _failed(self, text: str) -> Failed:
        return Failed(text=text, cost=self._cost())

    def _cost(self) -> Cost:
        pid = self._child.pid
        return Cost(
            runtime=round(time.monotonic() - self._started, 4),
            cpu_seconds=round(proc.cpu_seconds(pid), 4),
            max_memory_usage=max(0, proc.peak_resident_bytes(pid) - self._resident_at_start),
        )


def _order(job: Job) -> Order:
    return Order(
        compress=job.compress,
        env=job.env,
        memory_bytes=job.limits.memory_bytes,
        unpacked_bytes=job.limits.unpacked_bytes,
        result_bytes=job.limits.result_bytes,
    )


def _died(code: int) -> str:
    if code >= 0:
        return f"Your code ended its process with exit code {code}; nothing was saved."
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " Most likely it used more memory than the machine has." if name == "SIGKILL" else ""
    return f"Your code's process was ended by {name}; nothing was saved.{hint}"


async def _chunks(fd: int) -> AsyncIterator[bytes]:
    """What comes out of a pipe, until its writers are gone. The descriptor stays open."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    while True:
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            ready = asyncio.Event()
            loop.add_reader(fd, ready.set)
            try:
                await ready.wait()
            finally:
                with contextlib.suppress(OSError, ValueError):
                    loop.remove_reader(fd)
            continue
        if not data:
            return
        yield data
