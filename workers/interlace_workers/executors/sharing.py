"""Replicas of one model on one machine share a zygote, and so the weights: the first has it, the others ask it.

The first replica waits at a socket in a folder that only its own account may enter, as `headstart` does; who asks there
gets a channel of its own to the same process. What is forked for one replica is no other's, and ends with it.
"""

import asyncio
import contextlib
import errno
import os
import socket
from dataclasses import asdict
from pathlib import Path

from interlace_state.tasks import cancelled
from interlace_workers import channel
from interlace_workers.executors.base import ExecutorLost
from interlace_workers.executors.party import MergingExecutor
from interlace_workers.executors.zygote_process import ZygoteProcess
from interlace_workers.order import Load, Loaded
from interlace_workers.placement import headstart


class SharingExecutor(MergingExecutor):
    """A merging executor whose model's process other replicas may have, too."""

    def __init__(self, load: Load, place: str, zygote: ZygoteProcess | None = None) -> None:
        """``place``: where replicas of this load meet; "" shares with none. ``zygote`` as for `ForkExecutor`."""
        super().__init__(load, zygote)
        self._place = place
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> Loaded:
        if self._zygote is None and self._place:
            self._zygote = await self._of_another()
        loaded = await super().start()
        listener = _listener(Path(self._place)) if self._place else None
        if listener is not None and self._zygote is not None:
            self._serving = asyncio.create_task(self._serve(listener, loaded, self._zygote), name="share")
        return loaded

    async def _of_another(self) -> ZygoteProcess | None:
        """The process of a replica that is here already."""
        taken = await asyncio.to_thread(headstart.take, Path(self._place), self._load)
        if taken is None:
            return None
        zygote = ZygoteProcess(taken)
        zygote.shared = True
        return zygote

    async def stop(self) -> None:
        if self._serving is not None:
            await cancelled(self._serving)
        await super().stop()

    async def _serve(self, listener: socket.socket, loaded: Loaded, zygote: ZygoteProcess) -> None:
        with listener:
            try:
                while True:
                    asker, _ = await asyncio.get_running_loop().sock_accept(listener)
                    with asker, contextlib.suppress(OSError, ExecutorLost):
                        other = zygote.share(loaded)
                        with other.end:
                            fds = [other.end.fileno(), other.pidfd]
                            channel.send(asker, {"pid": other.pid, "load": asdict(self._load)}, fds)
                        os.close(other.pidfd)
            finally:
                Path(self._place).unlink(missing_ok=True)


def _listener(place: Path) -> socket.socket | None:
    """A socket there; None where somebody listens, or the folder is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(place))
            return None
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:  # of one that died
                place.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(str(place))
        listener.listen()
        listener.setblocking(False)
    except OSError:
        listener.close()
        return None
    return listener
