"""A pipe from a child to its parent."""

import asyncio
import os
from collections.abc import AsyncIterator

_READ = 64 << 10  # bytes


class Pipe:
    """A pipe from a child, whose write end the child gets."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_end, False)
        self._open = [self._read_end, self.write_end]

    async def chunks(self) -> AsyncIterator[bytes]:
        """What comes out, until its writers are gone. Each piece gives the event loop a turn."""
        loop = asyncio.get_running_loop()
        while True:
            readable = asyncio.Event()
            # For one piece only: a reader that stays would spin while nobody takes what it announces.
            loop.add_reader(self._read_end, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(self._read_end)
            data = os.read(self._read_end, _READ)
            if not data:
                return
            yield data

    def close_write_end(self) -> None:
        self._open.remove(self.write_end)
        os.close(self.write_end)

    def close(self) -> None:
        for fd in self._open:
            os.close(fd)
        self._open.clear()
