"""The interface of all executors: run one payload under limits, yield what happens, leave a result file."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from interlace.protocol.event import Picture, Progress
from interlace.protocol.job import Cost, Job
from interlace_workers.executors.given import Artifact, Checkpoint
from interlace_workers.executors.values import Streamed
from interlace_workers.order import Adapter, Loaded


class LoadFailed(Exception):
    """The model cannot be loaded; the message says why."""


@dataclass(frozen=True)
class Started:
    """The payload was read; user code runs."""


@dataclass(frozen=True)
class Printed:
    """Lines of the job's output, in order."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """A part of a job's run and when it was, in Unix seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Done:
    """The result file is complete."""

    cost: Cost
    #: In their order, as far as they are known.
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Failed:
    """The job came to nothing; ``text`` is for its user."""

    text: str
    cost: Cost
    #: One of `metrics.FAILURES`.
    reason: str = "raised"
    steps: tuple[Step, ...] = ()
    #: Whether its process died by a signal that no limit sent: it may have been the machine, and may go better again.
    crashed: bool = False


Happening = Started | Printed | Progress | Picture | Streamed | Artifact | Checkpoint | Done | Failed


@dataclass(frozen=True)
class Sealed:
    """An artifact in memory, which whoever gets a descriptor of it can read and nobody can change."""

    adapter: Adapter
    #: Equal for equal contents, whatever a request calls them.
    identity: tuple[object, ...]
    #: Closed when nobody holds it any more.
    file: BinaryIO


class Runner(Protocol):
    """Runs jobs, or one."""

    def run(
        self, job: Job, payload: bytes, result: Path, adapters: Sequence[Sealed] = ()
    ) -> AsyncGenerator[Happening, None]:
        """Run one job; the last thing yielded is Done or Failed. Closing the iterator early ends the job.

        Raises ExecutorLost if the model's process is gone: the job was not at fault and may run again. Raises Apart
        if it cannot share.
        """

    def cut_short(self, job_id: str) -> None:
        """Ask a method's job that runs to end with what it has; where it does not in time, it is ended."""

    def give_up(self) -> None:
        """The job does not run, or has ended: nobody waits for it. May be called in any case."""


class Executor(Runner, Protocol):
    """Runs jobs of one model."""

    async def start(self) -> Loaded:
        """Load the model. Raises LoadFailed."""

    def party(self, seats: int) -> list[Runner]:
        """Runners of so many jobs of one tenant, one each, which may share a process: each waits for the others."""

    def holder(self) -> int:
        """Id of the process that holds the weights, which other replicas may have, too; 0 while there is none."""

    async def lost(self) -> None:
        """Wait until the process that holds the model has ended by itself, and none that follows is this executor's."""

    async def stop(self) -> None:
        """End every job and let go of the model."""


class Apart(Exception):
    """The job was to share its process with others and cannot; nothing that it did counts, and it can run alone."""


class ExecutorLost(Exception):
    """The process that holds the model is gone."""
