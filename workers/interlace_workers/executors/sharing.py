"""Replicas of one model on one machine share a zygote, and so the weights: one has it, the others ask it.

That one is their host: it holds a lock, from before it loads until it ends, and then waits at a socket beside it, in a
folder that only its own account may enter, as `headstart` does. Who starts while a host loads waits for it, so that
replicas that start together, as after their zygote's end, load once. When a host ends, another becomes it. What is
forked for one replica is no other's, and ends with it.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
from dataclasses import asdict
from io import BufferedWriter
from pathlib import Path

from interlace_state.tasks import cancelled
from interlace_workers import channel
from interlace_workers.executors.base import ExecutorLost
from interlace_workers.executors.party import MergingExecutor
from interlace_workers.executors.zygote_process import ZygoteProcess
from interlace_workers.order import Load, Loaded
from interlace_workers.placement import headstart

_PAUSE = 0.25  # seconds between two looks whether there is a host


class SharingExecutor(MergingExecutor):
    """A merging executor whose model's process other replicas may have, too."""

    def __init__(self, load: Load, place: str, zygote: ZygoteProcess | None = None) -> None:
        """``place``: where replicas of this load meet; "" shares with none. ``zygote`` as for `ForkExecutor`."""
        super().__init__(load, zygote)
        self._place = _place_of(Path(place), load) if place else None
        self._lock: BufferedWriter | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> Loaded:
        self._is_host()  # before the model is there, if nobody is: who comes now shall wait for it
        loaded = await super().start()
        if self._place is not None and self._zygote is not None:
            self._serving = asyncio.create_task(self._serve(self._place, loaded, self._zygote), name="share")
        return loaded

    async def find_zygote(self) -> ZygoteProcess:
        """The host's, once it has loaded; our own, if we are it."""
        while self._place is not None and not self._is_host():
            taken = await asyncio.to_thread(headstart.take, self._place, self._load)
            if taken is not None:
                zygote = ZygoteProcess(taken)
                zygote.shared = True
                return zygote
            await asyncio.sleep(_PAUSE)
        return await super().find_zygote()

    async def stop(self) -> None:
        if self._serving is not None:
            await cancelled(self._serving)
        await super().stop()
        if self._lock is not None:
            self._lock.close()

    def _is_host(self) -> bool:
        """Whether we are, or could become it just now; where nobody can meet any more, everybody is."""
        if self._place is None or self._lock is not None:
            return True
        with contextlib.ExitStack() as opened:
            try:
                lock = opened.enter_context(self._place.with_suffix(".lock").open("wb"))
            except OSError:  # the folder is gone
                return True
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            opened.pop_all()
            self._lock = lock
        return True

    async def _serve(self, place: Path, loaded: Loaded, zygote: ZygoteProcess) -> None:
        """Share the process with whoever asks, once we are the host."""
        while not self._is_host():
            await asyncio.sleep(_PAUSE)
        try:
            listener = headstart.listening(place)  # where a host that was killed has left its own
        except OSError:  # the folder is gone
            return
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
                place.unlink(missing_ok=True)


def _place_of(place: Path, load: Load) -> Path:
    """Where replicas of exactly this load meet; a short name, for a socket's may have 107 bytes."""
    return place.with_name(hashlib.sha256(repr((place.name, load)).encode()).hexdigest()[:16] + ".share")
