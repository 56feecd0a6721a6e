"""What the placement loop remembers of one model between two looks. All of it can be lost: Redis has what must stay."""

import asyncio
import time
from dataclasses import dataclass, field

from interlace.protocol.hosting import Moment, Origin, Phase
from interlace.protocol.model import ModelKey
from interlace_state.desired import Desired
from interlace_state.models import HostedModel, ModelState
from interlace_workers.placement.memory import Occupant
from interlace_workers.placement.place import Placement
from interlace_workers.placement.scaling import Scale

IDLE_AFTER = 30.0  # seconds without a job


@dataclass(frozen=True)
class Shortage:
    """Why fewer replicas of a model may run than it needs."""

    #: Replicas that have room.
    has: int
    needs: int
    #: For whoever asks where the model stands.
    text: str


@dataclass
class Kept:
    """One model; times are those of `time.monotonic`."""

    record: Desired
    #: Its files are on this machine; None while they are not.
    placement: Placement | None = None
    #: Looks for its files.
    finding: "asyncio.Task[Placement] | None" = None
    #: Bytes that are here, and bytes in all, while it does.
    progress: tuple[int, int] | None = None
    #: Whether it looks for the small ones only.
    small: bool = False
    #: Whether clients can have its configuration and tokenizer.
    described: bool = False
    #: Whether it is given up, and since when.
    failed_at: float | None = None
    #: Whether what runs is of an older generation, and has to go first; whether nothing comes after it.
    leaving: bool = False
    for_good: bool = False
    scale: Scale = field(default_factory=lambda: Scale(0))
    #: Replicas that it may have now.
    target: int = 0
    #: None where all that it needs may run.
    shortage: Shortage | None = None
    #: What those wait for that may run, and that the runtime has no place for; empty where that is nothing.
    pending: str = ""
    jobs: int = 0
    live: int = 0
    submitted: int = -1
    used_at: float = field(default_factory=time.monotonic)
    hosted: HostedModel | None = None

    @property
    def key(self) -> ModelKey:
        return self.record.key

    @property
    def is_ready(self) -> bool:
        return self.hosted is not None and self.hosted.state is ModelState.READY

    @property
    def replicas(self) -> int:
        """Those that give a sign of life."""
        return 0 if self.hosted is None else len(self.hosted.replicas)

    @property
    def planned_bytes(self) -> int:
        return 0 if self.placement is None else self.placement.bytes_of(max(self.target, self.live))

    @property
    def more_bytes(self) -> int:
        """What its next replica takes."""
        assert self.placement is not None
        return self.placement.bytes_of(self.target + 1) - self.placement.bytes_of(self.target)

    @property
    def resident_bytes(self) -> int:
        if self.placement is None or self.hosted is None:
            return 0
        replicas, most = self.hosted.replicas, self.placement.need_bytes
        held = sum(min(most, replica.resident_bytes) for replica in replicas)
        return min(held, self.placement.bytes_of(len(replicas)))  # those that share a process all tell of that

    def renewed(self, record: Desired) -> None:
        """Take in what commands have changed; another generation starts from the files on."""
        if record.generation != self.record.generation or self.for_good:
            self.leave(for_good=False)
        self.record = record

    def leave(self, *, for_good: bool) -> None:
        """Have what runs stop."""
        self.leaving, self.for_good, self.failed_at = True, for_good, None
        self.target, self.scale, self.shortage, self.pending = 0, Scale(0), None, ""

    def looked_at(self, jobs: int, submitted: int, now: float) -> None:
        """Note whether somebody uses it."""
        if jobs or submitted != self.submitted:
            self.used_at = now
        self.jobs, self.submitted = jobs, submitted

    def rests(self, now: float) -> bool:
        """Whether it has been idle for so long that it leaves the memory."""
        model = self.record.model
        if model.pin or model.idle_seconds is None or self.jobs:
            return False
        return now - self.used_at >= model.idle_seconds

    def occupies(self) -> Occupant:
        """What memory it takes, and whether it would leave."""
        stays, going = "", self.target < self.live or self.leaving or self.record.resting
        if going:
            stays = "leaving"
        elif self.record.model.pin:
            stays = "pinned"
        elif self.jobs:
            stays = f"{self.jobs} {'job' if self.jobs == 1 else 'jobs'}"
        elif not self.is_ready:
            stays = "being loaded"
        nodes: dict[str, int] = {}
        there = () if self.hosted is None else self.hosted.replicas
        for replica in there:
            nodes[replica.node] = nodes.get(replica.node, 0) + self.planned_bytes // max(len(there), self.live)
        if (more := self.planned_bytes - sum(nodes.values())) > 0:  # it starts, or stops, without a sign of life
            nodes[""] = more
        return Occupant(str(self.key), nodes, self.used_at, stays, stays not in ("", "pinned"), going)

    def moment(self, now: float, at: float) -> Moment:
        """Where it stands; ``at`` is Unix time."""
        if self.failed_at is not None:
            failure = None if self.hosted is None else self.hosted.card.failure
            return Moment(phase=Phase.FAILED, text=failure or "", at=at)
        if self.finding is not None:
            if self.progress is None:
                return Moment(phase=Phase.QUEUED, text="Its files are looked for.", at=at)
            done, total = self.progress
            text = f"Downloading {total / 1e6:,.0f} MB."
            return Moment(phase=Phase.DOWNLOADING, text=text, at=at, bytes_done=done, bytes_total=total)
        lacks = self.pending or ("" if self.shortage is None else self.shortage.text)
        if self.is_ready and self.target:
            idle = not self.jobs and now - self.used_at >= IDLE_AFTER
            return Moment(phase=Phase.IDLE if idle else Phase.READY, text=lacks, at=at)
        if self.target and not (self.pending and not self.replicas):
            return Moment(phase=Phase.LOADING, text="Its weights are loaded.", at=at)
        if self.jobs and not lacks and self.hosted is not None and self.hosted.paused:
            lacks = "It is paused by its operator."
        if lacks or self.jobs or self.leaving:
            return Moment(phase=Phase.QUEUED, text=lacks, at=at)
        text = "Leaves the memory." if self.live else "Not in memory; the next job loads it."
        return Moment(phase=Phase.EVICTED, text=text, at=at)

    @property
    def is_on_demand(self) -> bool:
        return self.record.origin is Origin.ON_DEMAND
