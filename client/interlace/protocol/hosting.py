"""What is told of a hosted model: where it stands in its life, and what was asked for. Times are Unix seconds.

QUEUED -> DOWNLOADING -> LOADING -> READY <-> IDLE
   ^                                  |--------|
   |------------- EVICTED <--------------------'      FAILED from anywhere but EVICTED
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Phase(StrEnum):
    #: It will be placed; it waits for its turn, or for memory.
    QUEUED = "queued"
    #: Its files are fetched; the moment says how many bytes of how many.
    DOWNLOADING = "downloading"
    LOADING = "loading"
    READY = "ready"
    #: In memory, and no job has come for a while.
    IDLE = "idle"
    #: Not in memory. The next job brings it back.
    EVICTED = "evicted"
    FAILED = "failed"


class Origin(StrEnum):
    """Who has asked for a model."""

    CONFIGURED = "configured"
    DEPLOYED = "deployed"
    ON_DEMAND = "on_demand"


class Moment(BaseModel):
    """A step in the life of a model."""

    model_config = ConfigDict(frozen=True)

    phase: Phase
    #: One sentence for people; of a failure, the reason.
    text: str = ""
    at: float
    #: Bytes that are here, and bytes in all, while it is downloaded.
    bytes_done: int | None = None
    bytes_total: int | None = None


class ModelEvent(BaseModel):
    """Something that happened to a model."""

    model_config = ConfigDict(frozen=True)

    #: The repo id.
    model: str
    slug: str
    #: What it does from then on; None: it is hosted no longer.
    moment: Moment | None = None


class ModelView(BaseModel):
    """A hosted model."""

    model_config = ConfigDict(frozen=True)

    #: The repo id.
    model: str
    #: Its short name, which is unique also where two revisions of one repository are hosted.
    slug: str
    revision: str
    task: str | None
    origin: Origin
    phase: Phase
    text: str = ""
    #: When the phase began.
    since: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    dtype: str
    quantization: str | None = None
    #: Replicas that give a sign of life, and how many shall run now.
    replicas: int
    wanted: int | None = None
    #: Replicas that run at least while it is in memory, and at most.
    least: int
    most: int
    gpus: float = 0
    idle_seconds: float | None = None
    pin: bool = False
    paused: bool = False
    #: Jobs that wait or run.
    jobs: int
    #: Bytes of the weights; None while that is not known.
    size_bytes: int | None = None
    #: Bytes that its replicas hold now.
    resident_bytes: int = 0
    #: What happened lately, the newest last.
    history: list[Moment] = Field(default_factory=list)


class ModelList(BaseModel):
    models: list[ModelView]
