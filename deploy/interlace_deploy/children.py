"""A long-lived child process: in a session of its own, tied to our life, with its words in a log file."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import interlace_deploy.tether

_TETHER = interlace_deploy.tether.__file__
_LOOK = 0.05  # seconds between two looks at a log file


@dataclass(frozen=True)
class Child:
    """A process that we started. It gets SIGTERM when we end, however we end."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> "Child":
        """Start; what it prints is added to the log. `command[0]` is an absolute path."""
        tied = [sys.executable, "-I", "-S", _TETHER, str(os.getpid()), str(int(signal.SIGTERM)), *command]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *tied,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(env),
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        return self.process.pid

    async def wait(self) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        return await self.process.wait()

    async def stop(self, seconds: float) -> None:
        """Ask it to end, then make it; afterwards nothing of its process group is left."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), seconds)
        self.kill()
        await self.process.wait()

    def kill(self) -> None:
        """End its whole process group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def last_lines(self, count: int = 15) -> list[str]:
        """The end of its log."""
        return tail(self.log, count)


def rotate(log: Path) -> None:
    """Put a former run's log aside, one generation."""
    with contextlib.suppress(FileNotFoundError):
        log.replace(log.with_suffix(".log.1"))


def tail(log: Path, count: int) -> list[str]:
    """The last lines of a file; none where there is no file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64 * 1024))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


async def follow(log: Path, start: int = 0) -> AsyncIterator[str]:
    """The whole lines of a growing file from a byte on, for ever."""
    with await _opened(log) as file:
        file.seek(start)
        part = b""
        while True:
            part += file.readline()
            if part.endswith(b"\n"):
                # A progress bar writes over itself; its last state is what remains on a screen.
                yield part.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
                part = b""
            else:
                await asyncio.sleep(_LOOK)


async def _opened(log: Path) -> BinaryIO:
    while True:
        with contextlib.suppress(FileNotFoundError):
            return log.open("rb")
        await asyncio.sleep(_LOOK)
