"""The parent's side of a zygote: start it, ask it for children, learn how they ended."""

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import Any

from interlace_workers import channel
from interlace_workers.executors.base import ExecutorLost, LoadFailed
from interlace_workers.executors.cgroup import JobGroup
from interlace_workers.executors.memory import MemoryWatch
from interlace_workers.order import Load, Loaded
from interlace_workers.spawn import Spawned, spawn

_STOP_SECONDS = 5.0
#: Where a fork is refused, it is asked for again after so many seconds: others' threads may have ended.
_PAUSES = (0.1, 0.4, 1.6)
#: A child that is silent for so long, when it should say that it is ready, is taken to be lost.
_WORD_SECONDS = 60.0
_PEACE = 0.02  # seconds


class NoChild(ExecutorLost):
    """The process that holds the model goes on; a child of it is not to be had, or has ended before its job came."""


class Unsealed(ExecutorLost):
    """A layer of the sandbox refuses; it will refuse the next child, too."""


@dataclass(frozen=True)
class Exit:
    """How a child ended, and what it had used."""

    #: Exit code, negative for a signal.
    code: int
    cpu_seconds: float
    peak_bytes: int


@dataclass
class Child:
    """A forked and sealed process that waits for its order, or runs it."""

    pid: int
    pidfd: int
    order: socket.socket
    #: A descriptor that shows how much memory the process holds.
    memory: int
    exited: "asyncio.Future[Exit]"
    #: Where it and all that it starts are counted, if groups were delegated to us; else it is watched.
    group: JobGroup | None = None
    watch: MemoryWatch | None = None
    #: Whether it has rehearsed; None while it does.
    is_warm: bool | None = False
    #: Processor seconds that others than its job have used.
    cpu_before: float = 0.0

    def kill(self) -> None:
        """Kill the child; the zygote kills what it leaves. It cannot block, catch or outrun this."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        if self.group is not None:
            self.group.kill()

    def end(self) -> None:
        """`kill` and `close` one whose job has said how it ended: it is stopped now, and killed in a moment.

        To take its memory down costs the kernel 5 to 10 ms, for which the result's way to its client shall not wait.
        """
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(_PEACE, self._bury)
        self.exited.add_done_callback(lambda _: self._bury())

    def _bury(self) -> None:
        if self.order.fileno() >= 0:  # not closed yet
            self.kill()
            self.close()

    def ask_to_stop(self) -> None:
        """Tell a method that runs in it to end soon."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGUSR1)

    def close(self) -> None:
        """Let go of a child that has ended or was killed; its group goes when the kernel is done with it."""
        if (group := self.group) is not None:
            self.exited.add_done_callback(lambda _: group.remove())
        self.order.close()
        os.close(self.pidfd)
        if self.memory >= 0:
            os.close(self.memory)

    async def sealed(self) -> None:
        """Wait until the process is behind its sandbox's layers. Raises ExecutorLost if it cannot be."""
        self.order.setblocking(False)
        await self._says("sealed")

    async def rehearse(self) -> None:
        """Have the process do ahead what each first trace pays for. Raises ExecutorLost."""
        self.is_warm = None
        with contextlib.suppress(OSError):  # its end shows below
            channel.send(self.order, {"rehearse": True})
        await self._says("warm")
        self.is_warm = True

    async def _says(self, word: str) -> None:
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.order, readable.set)
        self.exited.add_done_callback(lambda _: readable.set())
        try:
            while True:
                async with asyncio.timeout(_WORD_SECONDS):
                    await readable.wait()
                readable.clear()
                try:
                    message, fds = channel.receive(self.order)
                except BlockingIOError:
                    if self.exited.done():
                        raise EOFError from None
                    continue  # announced twice, read once
                if "memory" in message:
                    (self.memory,) = fds
                elif word in message:
                    return
                else:
                    raise Unsealed(f"a child could not be sealed: {message.get('refused')}")
        except EOFError:
            raise NoChild("a child ended before its job came") from None
        except TimeoutError:
            raise NoChild(f"a child has not said for {_WORD_SECONDS:g} s that it is {word}") from None
        finally:
            loop.remove_reader(self.order)


class ZygoteProcess:
    """A running zygote."""

    def __init__(self, process: Spawned) -> None:
        """One that loads its model, or has loaded it; `loaded` tells when it is ready."""
        self._process = process
        self._end = process.end
        self._forks: deque[asyncio.Future[Child]] = deque()
        self._children: dict[int, asyncio.Future[Exit]] = {}
        self._loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self._lost: ExecutorLost | None = None
        self._gone = asyncio.Event()
        #: Whether other replicas have it, too: it may go on when we let go of it.
        self.shared = False
        self._end.setblocking(False)
        asyncio.get_running_loop().add_reader(self._end, self._read)

    @classmethod
    def start(cls, load: Load) -> "ZygoteProcess":
        """Start a process and have it load its model."""
        process = spawn()
        channel.send(process.end, {"load": asdict(load)})
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def loaded(self) -> Loaded:
        """Wait for the model. Raises LoadFailed; ExecutorLost if the process has ended, which is no verdict on it."""
        return await asyncio.shield(self._loaded)

    def share(self, loaded: Loaded) -> Spawned:
        """The same process for another replica of the model, with a channel of its own: it lives while either does.

        Raises ExecutorLost.
        """
        if self._lost is not None:
            raise self._lost
        ours, theirs = channel.pair()
        with theirs:
            channel.send(self._end, {"share": asdict(replace(loaded, seconds=None))}, [theirs.fileno()])
        self.shared = True
        return Spawned(self.pid, os.dup(self._process.pidfd), ours)

    async def fork(self) -> Child:
        """A new child, sealed and waiting for its order. Raises ExecutorLost; NoChild where the machine refuses one."""
        for pause in _PAUSES:
            try:
                child = await self._ask()
                break
            except NoChild:
                await asyncio.sleep(pause)
        else:
            child = await self._ask()
        try:
            await child.sealed()
        except BaseException:
            child.kill()
            child.close()
            raise
        return child

    async def _ask(self) -> Child:
        """A child that is not sealed yet. Raises as `fork`."""
        if self._lost is not None:
            raise self._lost
        future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._forks.append(future)
        try:
            channel.send(self._end, {"fork": True})
        except OSError:
            self._lose()
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:  # it came at the same moment
                future.result().kill()
                future.result().close()
            raise

    async def settle(self, first: Child) -> None:
        """End the first child, which has shown that one can be sealed, and have the zygote prepare for all others.

        Until that is done, in a second, a fork waits. Raises ExecutorLost.
        """
        first.kill()
        try:
            await first.exited
        finally:
            first.close()
        with contextlib.suppress(OSError):  # its end shows at the next fork
            channel.send(self._end, {"settle": True})

    async def lost(self) -> None:
        """Wait until it has ended, or was stopped."""
        await self._gone.wait()

    async def stop(self) -> None:
        """End the zygote; it ends its children when the channel does."""
        loading = not self._loaded.done()
        self._lose()
        if self.shared:
            return
        if loading:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _read(self) -> None:
        try:
            message, fds = channel.receive(self._end)
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self._lose()
            return
        if "forked" in message:
            self._forked(message["forked"], fds)
        elif "refused" in message:
            if not (waiting := self._forks.popleft()).done():
                waiting.set_exception(NoChild(message["refused"]))
        elif "exited" in message:
            future = self._children.pop(message["exited"], None)
            if future is not None and not future.done():
                future.set_result(Exit(message["code"], message["cpu_seconds"], message["peak_bytes"]))
        elif not self._loaded.done():
            self._tell_loaded(message)

    def _forked(self, pid: int, fds: list[int]) -> None:
        order, pidfd = fds
        exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._children[pid] = exited
        child = Child(pid=pid, pidfd=pidfd, order=socket.socket(fileno=order), memory=-1, exited=exited)
        waiting = self._forks.popleft()
        if waiting.cancelled():
            child.kill()
            child.close()
        else:
            waiting.set_result(child)

    def _tell_loaded(self, message: dict[str, Any]) -> None:
        if "loaded" in message:
            self._loaded.set_result(Loaded(**message["loaded"]))
        else:
            self._loaded.set_exception(LoadFailed(message["failed"]))

    def _lose(self) -> None:
        """Everybody who waits for the zygote learns that it is gone."""
        if self._lost is not None:
            return
        self._lost = ExecutorLost("the process that holds the model has ended")
        self._gone.set()
        asyncio.get_running_loop().remove_reader(self._end)
        self._end.close()
        if not self._loaded.done():
            self._loaded.set_exception(self._lost)
            self._loaded.exception()  # somebody may have stopped waiting
        waiting: list[asyncio.Future[Any]] = [*self._forks, *self._children.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(self._lost)
                future.exception()
