"""A child that is forked ahead of its job: sealed, and warm if the machine had nothing better to do."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from interlace_state.tasks import cancelled
from interlace_workers.executors import proc
from interlace_workers.executors.base import ExecutorLost
from interlace_workers.executors.zygote_process import Child, NoChild

_LOOK, _LONGEST_LOOK = 0.01, 0.16  # seconds between two looks whether a core is idle: at first, and on a busy machine


class Spare:
    """Forks, then has the child rehearse once a core is idle.

    A rehearsal takes 40 ms of processor time and spares the job 20: worth it where nobody else wants the core, and
    worth no wait: a child that gets its order while it rehearses, stops at the next layer.
    """

    def __init__(self, forking: "Coroutine[Any, Any, Child]") -> None:
        self._forking = asyncio.create_task(forking, name="fork ahead")
        self._rehearsing: asyncio.Task[None] | None = None
        self._waiting = asyncio.create_task(self._wait_for_a_core(), name="wait for a core")

    async def sealed(self) -> Child:
        """Wait until the child can take a job; who runs one takes it. Raises ExecutorLost."""
        return await asyncio.shield(self._forking)

    async def take(self) -> Child:
        """The child, the caller's from now on; it may be rehearsing still. Raises ExecutorLost."""
        try:
            await cancelled(self._waiting)
            child = await asyncio.shield(self._forking)
            if self._rehearsing is not None:
                await cancelled(self._rehearsing)
            if child.exited.done():
                raise NoChild("the child that was forked ahead has ended")
        except BaseException:
            await asyncio.shield(self.close())
            raise
        return child

    async def close(self) -> None:
        """Want it no more, whether it is there or comes."""
        await cancelled(*(task for task in (self._waiting, self._rehearsing, self._forking) if task is not None))
        if not self._forking.cancelled() and self._forking.exception() is None:
            child = self._forking.result()
            child.kill()
            child.close()

    async def _wait_for_a_core(self) -> None:
        with contextlib.suppress(ExecutorLost):  # whoever takes the child learns of it
            child = await self.sealed()
            pause = _LOOK
            while not proc.has_idle_core():
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_LOOK)
            self._rehearsing = asyncio.create_task(child.rehearse(), name="rehearse")
