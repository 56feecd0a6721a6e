"""The first model's process, which `interlace up` starts before all else: it takes longest."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from interlace_workers.spawn import Spawned, spawn


@dataclass
class Ahead:
    """A process that imports what models need, until workers take it over."""

    process: Spawned
    #: What it prints can be read here, by whoever closes it.
    output: int | None
    is_taken: bool = False

    def words(self) -> list[str]:
        """What workers are told of it on their command line."""
        return [f"--first={self.process.pid}:{self.process.end.fileno()}:{self.process.pidfd}"]

    def taken(self) -> None:
        """Workers have its channel: it ends when they let go of that."""
        self.is_taken = True
        self.process.end.close()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


@contextmanager
def started() -> Iterator[Ahead]:
    """Start it; at the end of the block it is gone."""
    output, into = os.pipe()
    try:
        ahead = Ahead(spawn(prints=into), output)
    finally:
        os.close(into)
    try:
        yield ahead
    finally:
        ahead.kill()
        with contextlib.suppress(ChildProcessError):  # it was buried when it ended
            os.waitid(os.P_PIDFD, ahead.process.pidfd, os.WEXITED)
        ahead.process.end.close()
        os.close(ahead.process.pidfd)
        if ahead.output is not None:
            os.close(ahead.output)
