"""A long-lived child process: in a session of its own, tied to our life, with its words in a log file."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from interlace_deploy.parts import tether

_TETHER = tether.__file__
_LONGEST_LINE = 64 << 10  # bytes
_SESSION = re.compile(rb".*\) \S+ \d+ \d+ (\d+) ", re.DOTALL)  # the sixth field of /proc/PID/stat

Heed = Callable[[str], None]
"""Takes one line that a child printed on its standard output."""


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
        *,
        heed: Heed = lambda _: None,
        pass_fds: Sequence[int] = (),
    ) -> "Child":
        """Start; both its outputs are added to the log. `command[0]` is an absolute path."""
        tied = [sys.executable, "-I", "-S", _TETHER, str(os.getpid()), str(int(signal.SIGTERM)), *command]
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        output, into = os.pipe()
        try:
            with log.open("ab") as errors:
                process = await asyncio.create_subprocess_exec(
                    *tied,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=into,
                    stderr=errors,
                    env=dict(env),
                    start_new_session=True,
                    pass_fds=tuple(pass_fds),
                )
        except BaseException:  # a cancelled start, too, leaves nobody who would close it
            os.close(output)
            raise
        finally:
            os.close(into)
        _Copier(output, log, heed)
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        return self.process.pid

    async def wait(self) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        return await self.process.wait()

    async def stop(self, seconds: float) -> None:
        """Ask it to end, then make it; afterwards nothing of its session is left."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), seconds)
        self.kill()
        await self.process.wait()

    def kill(self) -> None:
        """End its whole session at once: itself, and all that it started and that did not leave."""
        for pid in list(_session(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def last_lines(self, count: int = 15) -> list[str]:
        """The end of its log."""
        return tail(self.log, count)


class _Copier:
    """Moves a pipe's bytes into a log and its lines to whoever heeds them, until nobody can write any more."""

    def __init__(self, pipe: int, log: Path, heed: Heed) -> None:
        self._pipe = pipe
        self._log = log.open("ab", buffering=0)
        self._heed = heed
        self._part = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pipe, self._read)

    def _read(self) -> None:
        chunk = os.read(self._pipe, _LONGEST_LINE)
        if not chunk:
            self._loop.remove_reader(self._pipe)
            os.close(self._pipe)
            self._log.close()
            return
        self._log.write(chunk)
        *lines, part = (self._part + chunk).split(b"\n")
        self._part = part[-_LONGEST_LINE:]
        for line in lines:
            # A progress bar writes over itself; its last state is what remains on a screen.
            self._heed(line.decode(errors="replace").rstrip("\r").rpartition("\r")[2])


def copy_into(log: Path, pipe: int) -> None:
    """Move what comes out of a pipe into a log, until nobody can write any more; then the pipe is closed."""
    _Copier(pipe, log, lambda _: None)


def rotate(log: Path) -> None:
    """Put a former run's log aside, one generation."""
    with contextlib.suppress(FileNotFoundError):
        log.replace(log.with_suffix(".log.1"))


def tail(log: Path, count: int) -> list[str]:
    """The last lines of a file; none where there is no file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - (64 << 10)))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


def _session(leader: int) -> Iterator[int]:
    """The processes of a session. Its number is nobody else's while one of them lives."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            match = folder.name.isdecimal() and _SESSION.match((folder / "stat").read_bytes())
            if match and int(match[1]) == leader:
                yield int(folder.name)
