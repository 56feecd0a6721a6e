"""How a gateway stops: first it takes no new jobs, then it ends the streams that are still open."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

_GOODBYE = 2.0  # seconds for the last frames to go out


class Drain:
    """Shared by the process, which drives it, and the routes, which heed it."""

    def __init__(self) -> None:
        #: New jobs are refused.
        self.refusing = False
        #: Open streams say their last word now.
        self.closing = asyncio.Event()
        self._streams = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._streams

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count a stream as open while the block runs."""
        self._streams += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._streams -= 1
            if self._streams == 0:
                self._idle.set()

    async def finish(self, seconds: float) -> None:
        """Refuse new jobs, let open streams run to their end for so long or until ``closing`` is set, then end them."""
        self.refusing = True
        idle = asyncio.create_task(self._idle.wait(), name="drain-idle")
        closing = asyncio.create_task(self.closing.wait(), name="drain-closing")
        await asyncio.wait((idle, closing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self.closing.set()
        await asyncio.wait((idle,), timeout=_GOODBYE)
        idle.cancel()
        closing.cancel()
