"""A job that was posted, as whoever follows it sees it: what has happened, whatever its result is."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from interlace._errors import JobFailed
from interlace.protocol.errors import InterlaceError
from interlace.protocol.event import Ended, Event, Log, Picture, Progress, StateChanged
from interlace.protocol.job import Cost, JobState


class Source(Protocol):
    """What a job needs of its client."""

    def leave(self, job_id: str) -> None: ...

    def cancel(self, job_id: str) -> Any: ...

    def fetch(self, job_id: str, what: str) -> bytes | bytearray: ...


class Followed:
    """A job, followed until its end. All methods may be called from any thread."""

    def __init__(self, source: Source, job_id: str, failure: type[JobFailed] = JobFailed) -> None:
        self.id = job_id
        self.after: str | None = None
        self._source = source
        self._failure = failure
        self._events: list[Event] = []
        self._result: bytes | None = None
        self._error: InterlaceError | None = None
        self._changed = threading.Condition()
        self._wakes: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, {self.state})"

    @property
    def state(self) -> JobState:
        """Where it stands, as far as has been told."""
        told = [event.state for event in list(self._events) if isinstance(event, StateChanged | Ended)]
        return told[-1] if told else JobState.RECEIVED

    @property
    def progress(self) -> Progress | None:
        """How far it is, as it said last; None while it has said nothing, and for what has no steps."""
        told = [event for event in list(self._events) if isinstance(event, Progress)]
        return told[-1] if told else None

    @property
    def picture(self) -> Picture | None:
        """The newest picture that it has shown; `data` is the PNG. Not every one comes through."""
        told = [event for event in list(self._events) if isinstance(event, Picture)]
        return told[-1] if told else None

    @property
    def cost(self) -> Cost | None:
        """What it used; None before its end."""
        return end.cost if (end := self._end()) is not None else None

    @property
    def ended(self) -> Ended | None:
        """How it ended; None before."""
        return self._end()

    @property
    def lost(self) -> bool:
        """Whether it is followed no more although its end is not known."""
        return self._error is not None

    def wait(self, timeout: float | None = None) -> Ended:
        """Its end, however it ended. Raises TimeoutError, and InterlaceError where it cannot be followed any more."""
        with self._changed:
            if not self._changed.wait_for(self._is_over, timeout):
                raise TimeoutError(f"job {self.id} has not ended within {timeout:g} s")
            end = self._end()
            if end is None:
                assert self._error is not None
                raise self._error
            return end

    def events(self, timeout: float | None = None) -> Iterator[Event | None]:
        """What has happened and what happens, to the end; None for each ``timeout`` seconds in which nothing did."""
        seen = 0
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._has_news, seen), timeout)
                news, error = self._events[seen:], self._error
            seen += len(news)
            for event in news:
                yield event
                if isinstance(event, Ended):
                    return
            if error is not None:
                raise error
            if not news:
                yield None

    def logs(self) -> Iterator[str]:
        """The lines that it prints, to its end."""
        return (event.text for event in self.events() if isinstance(event, Log))

    def cancel(self) -> None:
        """Stop it, if it has not ended. A method that runs is asked to end with what it has; ask again to stop it."""
        self._source.cancel(self.id)

    def leave(self) -> None:
        """Follow it no more. The job goes on."""
        self._source.leave(self.id)

    def tell(self, event_id: str, event: Event, data: bytes | None) -> None:
        """For the thread that follows it."""
        if isinstance(event, Picture):
            event = event.model_copy(update={"data": data})
        with self._changed:
            self._events.append(event)
            if isinstance(event, Ended):
                self._result = data
            self._wake()

    def fail(self, error: InterlaceError) -> None:
        """For the thread that follows it."""
        with self._changed:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        for wake in self._wakes:
            wake()

    def _end(self) -> Ended | None:
        last = self._events[-1] if self._events else None
        return last if isinstance(last, Ended) else None

    def _has_news(self, seen: int) -> bool:
        return len(self._events) > seen or self._is_over()

    def _is_over(self) -> bool:
        return self._error is not None or self._end() is not None

    def _raise_if_lost(self) -> None:
        if self._end() is None and self._error is not None:
            raise self._error

    async def _until(self, holds: Callable[[], bool]) -> None:
        woken = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(woken.set)

        with self._changed:
            self._wakes.append(wake)
        try:
            while not holds():
                await woken.wait()
                woken.clear()
        finally:
            with self._changed:
                self._wakes.remove(wake)

    def _bytes(self) -> bytes | bytearray:
        """What is stored as the result."""
        return self._result if self._result is not None else self._source.fetch(self.id, "result")
