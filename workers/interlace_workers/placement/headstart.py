"""A model's process, started by the placer as soon as a replica is wanted: the replica takes it over once it is there.

Imports and weights take as long as Ray, or its new actor, does; side by side they cost half of the time. The placer
waits at a socket in a folder that only its own account may enter, where replicas of a model look each time that they
start. Who asks there gets the process, once; a replica that finds nothing there, as on another machine, starts one of
its own.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import struct
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from interlace_state import log
from interlace_workers import channel
from interlace_workers.order import Load
from interlace_workers.spawn import Spawned, spawn

_ANSWER_SECONDS = 10.0  # who is not answered loads weights of its own
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class HeadStarts:
    """The processes that are started ahead, and nobody has taken yet."""

    def __init__(self, folder: Path, first: Spawned) -> None:
        self._folder = folder
        self._first: Spawned | None = first
        self._offered: dict[Path, tuple[Spawned, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def place(self, name: str) -> Path:
        """Where replicas of one load ask for a process."""
        return self._folder / f"{name}.ahead"

    def start(self, load: Load, place: Path) -> int | None:
        """Start loading, and offer the process at that place instead of one that was offered there; its id.

        None where that cannot be, as when the folder has gone: nothing has been started, and replicas load themselves.
        """
        self.withdraw(place)
        with contextlib.ExitStack() as undo:
            try:
                listener = undo.enter_context(listening(place))
                zygote, self._first = self._first or spawn(), None
                undo.callback(self._end, zygote)
                channel.send(zygote.end, {"load": asdict(load)})
            except OSError as error:
                log.warning("no_head_start", place=str(place), error=str(error))
                return None
            undo.pop_all()
        offering = self._keep(self._hand_over(zygote, listener, place, load), f"head start {zygote.pid}")
        self._offered[place] = zygote, offering
        return zygote.pid

    def meeting_place(self, name: str) -> Path:
        """Where replicas of one load may meet; see `sharing`."""
        return self._folder / f"{name}.share"

    def withdraw(self, place: Path) -> None:
        """End the process that was offered there, if nobody has taken it."""
        if (offer := self._offered.pop(place, None)) is not None:
            zygote, offering = offer
            offering.cancel()
            place.unlink(missing_ok=True)
            self._end(zygote)

    def spare(self) -> None:
        """End the first process, if no model has needed it."""
        if self._first is not None:
            self._end(self._first)
            self._first = None

    def close(self) -> None:
        """End what nobody has taken."""
        self.spare()
        for zygote, _ in self._offered.values():
            _kill(zygote)
        for task in self._tasks:
            task.cancel()

    def _keep(self, work: Coroutine[None, None, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _end(self, zygote: Spawned) -> None:
        _kill(zygote)
        self._keep(zygote.wait(), f"end of {zygote.pid}")

    async def _hand_over(self, zygote: Spawned, listener: socket.socket, place: Path, load: Load) -> None:
        """Give the process to the first who asks. It ends with whoever holds its channel: us, until then."""
        with listener:
            asker, _ = await asyncio.get_running_loop().sock_accept(listener)
        del self._offered[place]
        place.unlink(missing_ok=True)
        with asker, zygote.end, contextlib.suppress(OSError):
            message = {"pid": zygote.pid, "load": asdict(load)}
            channel.send(asker, message, [zygote.end.fileno(), zygote.pidfd])
        await zygote.wait()


def listening(place: Path) -> socket.socket:
    """A socket at that place, in the stead of one that was left there. Raises OSError."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        place.unlink(missing_ok=True)
        listener.bind(str(place))
        listener.listen()
        listener.setblocking(False)
        opened.pop_all()
    return listener


def _kill(zygote: Spawned) -> None:
    with contextlib.suppress(ProcessLookupError):
        zygote.kill()
    zygote.end.close()


@contextmanager
def head_starts(first: Spawned) -> Iterator[HeadStarts]:
    """A folder for their sockets, with a short name, for as long as the block runs. ``first`` has been spawned."""
    with TemporaryDirectory(prefix="interlace-", ignore_cleanup_errors=True) as folder, _held(folder):
        started = HeadStarts(Path(folder), first)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def _held(folder: str) -> Iterator[None]:
    """What systemd-tmpfiles finds locked it leaves alone, with all below it, however old it is (`man tmpfiles.d`)."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_SH)
        yield
    finally:
        os.close(opened)


def take(place: Path, load: Load) -> Spawned | None:
    """The process that loads this at that place; None if there is none. Blocks for an instant."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.settimeout(_ANSWER_SECONDS)
        try:
            asking.connect(str(place))
            _, uid, _ = _CREDENTIALS.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid != os.getuid():
                return None
            message, fds = channel.receive(asking)
        except (OSError, EOFError):
            return None
    end, pidfd = fds
    taken = Spawned(message["pid"], pidfd, socket.socket(fileno=end))
    if message["load"] == json.loads(json.dumps(asdict(load))):  # as it comes out of a channel
        return taken
    taken.end.close()  # which ends it
    os.close(pidfd)
    return None
