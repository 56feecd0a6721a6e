"""What happens to a leased job, written in its order while the job goes on: nothing waits for Redis that need not."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from interlace.protocol.event import Event
from interlace_state.queue import Lease, Queue
from interlace_state.tasks import cancelled

#: Events that may wait to be written; whoever brings more waits, too.
_AHEAD = 256
_MOMENT = 0.05  # seconds

#: What Redis raises while it is away, restarts included; it is asked again, and no job ends for it.
AWAY = (RedisConnectionError, RedisTimeoutError)

T = TypeVar("T")


class Insist(Protocol):
    """Asks Redis again while it is away."""

    async def __call__(self, ask: Callable[[], Awaitable[T]]) -> T: ...


class LeaseLost(Exception):
    """Another worker has the job, or it has ended."""


class Journal:
    """The events of one lease, all but the last. A context manager: what is not written at its end is dropped."""

    def __init__(self, queue: Queue, lease: Lease, insist: Insist) -> None:
        self._queue = queue
        self._lease = lease
        self._insist = insist
        self._pending: list[Event] = []
        self._writing: asyncio.Task[None] | None = None
        self._moment: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> "Journal":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moment is not None:
            self._moment.cancel()
        if self._writing is not None:
            await cancelled(self._writing)

    def note_soon(self, event: Event) -> None:
        """Have an event written with the one that follows, or by itself if none comes in a moment."""
        self._pending.append(event)
        if self._writing is None or self._writing.done():
            self._moment = asyncio.get_running_loop().call_later(_MOMENT, self._begin)

    async def note(self, *events: Event) -> None:
        """Have events written, with others that come meanwhile. Raises what writing those before has raised."""
        if self._writing is not None and self._writing.done():
            self._writing.result()
        self._pending += events
        self._begin()
        if self._writing is not None and len(self._pending) >= _AHEAD:
            await asyncio.shield(self._writing)

    async def written(self) -> None:
        """Wait until all is written. Raises LeaseLost if the job was no longer the lease's, RedisError."""
        self._begin()
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def confirm(self) -> None:
        """Wait until all is written, and make sure that the job is the lease's now. Raises as `written`."""
        await self.written()
        await self._record()

    def _begin(self) -> None:
        """Write what waits, unless that is done just now or has failed, which whoever asks next is told."""
        writing = self._writing
        if self._pending and (writing is None or (writing.done() and writing.exception() is None)):
            self._writing = asyncio.create_task(self._write(), name="journal")

    async def _write(self) -> None:
        while self._pending:
            events, self._pending = self._pending, []
            await self._record(*events)

    async def _record(self, *events: Event) -> None:
        if not await self._insist(lambda: self._queue.record(self._lease, *events)):
            raise LeaseLost
