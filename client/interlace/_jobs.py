"""A trace's job as its client sees it: what has happened, the values that have come, its result."""

import asyncio
import io
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from interlace._errors import JobFailed
from interlace._followed import Followed, Source
from interlace.protocol.event import Ended, Event, Saved
from interlace.protocol.job import JobState

_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class Value:
    """A value that left before its job's end; unpacks as ``name, value``."""

    name: str
    value: Any
    #: The step of a generation, from 0; None outside of steps.
    step: int | None
    #: From 1, in the order in which the values left.
    number: int

    def __iter__(self) -> Iterator[Any]:
        return iter((self.name, self.value))


class RunningJob(Followed):
    """A trace that was posted, followed until its end. All methods may be called from any thread.

    A value that has come is kept until somebody takes it, and is given out once.
    """

    def __init__(self, source: Source, job_id: str, failure: type[JobFailed] = JobFailed) -> None:
        super().__init__(source, job_id, failure)
        self._values: deque[tuple[Saved, bytes | None]] = deque()
        self._newest = 0

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """What the block saved, by name. Raises JobFailed for a job that came to nothing, and what `wait` raises."""
        return self._loaded(self.wait(timeout))

    def values(self) -> Iterator[Value]:
        """Values as they come, to the job's end. A failure of the job is for `result` to raise."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._values or self._is_over())
            found = self.take()
            if found is None:
                self._raise_if_lost()
                return
            yield found

    async def avalues(self) -> AsyncIterator[Value]:
        """As `values`, on an event loop."""
        while True:
            await self._until(lambda: bool(self._values) or self._is_over())
            found = await asyncio.to_thread(self.take)
            if found is None:
                self._raise_if_lost()
                return
            yield found

    async def aresult(self) -> dict[str, Any]:
        """As `result`, on an event loop."""
        await self._until(self._is_over)
        return await asyncio.to_thread(self.result)

    def on_value(self, callback: Callable[[Value], object]) -> None:
        """Have a thread call back with each value as it comes. What the callback raises is printed."""
        threading.Thread(target=self._call, args=(callback,), name=f"values of {self.id}", daemon=True).start()

    def take(self) -> Value | None:
        """The next value that has come and that nobody has taken; None if there is none by now."""
        with self._changed:
            if not self._values:
                return None
            event, data = self._values.popleft()
        if data is None:
            data = self._source.fetch(self.id, f"values/{event.number}")
        return Value(event.name, load(data), event.step, event.number)

    def tell(self, event_id: str, event: Event, data: bytes | None) -> None:
        """For the thread that follows it."""
        with self._changed:
            if isinstance(event, Saved):
                if event.number <= self._newest:  # the job runs again, and has come to where it was
                    return
                self._newest = event.number
                self._values.append((event, data))
            super().tell(event_id, event, data)

    def _loaded(self, end: Ended) -> dict[str, Any]:
        if end.state is not JobState.COMPLETED:
            raise self._failure(end.text or f"The job was {end.state}.")
        data = self._bytes()
        if data.startswith(b"{"):
            raise self._failure(f"Job {self.id} runs a method: `client.follow_method({self.id!r})` reads its result.")
        found: dict[str, Any] = load(data)
        return found

    def _call(self, callback: Callable[[Value], object]) -> None:
        try:
            for value in self.values():
                callback(value)
        except Exception:  # noqa: BLE001  the thread's edge: a callback may raise anything
            traceback.print_exc()


def load(data: bytes) -> Any:
    """What torch.save wrote, as a zstd frame or bare. It is unpickled: from a server that you trust."""
    import torch

    if data[:4] == _ZSTD:
        import zstandard

        data = zstandard.ZstdDecompressor().decompress(data)
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
