"""A job, from the moment its client gets an id to its end.

RECEIVED -> QUEUED -> LEASED -> RUNNING -> COMPLETED | ERROR | CANCELLED
              ^---------|----------|          (a lapsed lease: not the user's fault)
"""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from interlace.protocol.method import MethodCall
from interlace.protocol.model import ModelKey


class JobKind(StrEnum):
    """What a payload is."""

    #: What nnsight serializes.
    TRACE = "trace"
    #: A method's parameters, as JSON.
    METHOD = "method"


class JobState(StrEnum):
    RECEIVED = "received"
    QUEUED = "queued"
    LEASED = "leased"
    RUNNING = "running"
    COMPLETED = "completed"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in _ENDS


_ENDS = frozenset({JobState.COMPLETED, JobState.ERROR, JobState.CANCELLED})


class Limits(BaseModel):
    """What one job may use. Travels with the job; the worker's parent process enforces it."""

    model_config = ConfigDict(frozen=True)

    #: Seconds from the hand-over to the sandbox to its end, reading the payload included.
    wall_seconds: float = 600.0
    #: Bytes of memory over what the model itself holds.
    memory_bytes: int = 4 << 30
    #: Bytes of the payload after decompression.
    unpacked_bytes: int = 1 << 30
    #: Bytes of the serialized result, before compression.
    result_bytes: int = 2 << 30
    #: Bytes of printed output.
    log_bytes: int = 1 << 20
    #: Values that may stream before the job's end; their bytes count against `result_bytes`, apart from the result's.
    streamed_values: int = 10_000
    #: Bytes of saved values that stream to a client that has not asked for them, as stock nnsight cannot.
    unasked_bytes: int = 1 << 20


class Job(BaseModel):
    """One request to run. The payload is opaque bytes that only the sandbox reads."""

    model_config = ConfigDict(frozen=True)

    id: str
    tenant: str
    model: ModelKey
    kind: JobKind = JobKind.TRACE
    #: Of a method's job.
    method: MethodCall | None = None
    #: Whether payload and result are zstd frames.
    compress: bool
    #: nnsight's per-request model environment, e.g. ``{"attn_implementation": "sdpa"}``.
    env: dict[str, Any] = Field(default_factory=dict)
    limits: Limits
    #: The WebSocket session that waits for this job; empty when it is polled.
    session_id: str = ""
    #: Whether its client wants what traces and steps save as soon as they are over.
    stream_saves: bool = False
    #: Whether its result goes into its frame as it is, since its client's link is faster than compression.
    raw: bool = False
    #: Bytes of the payload as received.
    payload_bytes: int
    #: Unix time.
    submitted_at: float
    #: What the logs of all parts call the request that brought the job; empty where nobody said.
    request_id: str = ""
    #: The W3C trace context that the job's spans belong to; empty where nothing is traced.
    traceparent: str = ""


class Cost(BaseModel):
    """What a job used, told on success and on failure alike."""

    model_config = ConfigDict(frozen=True)

    #: Seconds of wall time in the sandbox.
    runtime: float | None = None
    #: Seconds of processor time in the sandbox.
    cpu_seconds: float | None = None
    #: Peak bytes of memory over what the model itself holds.
    max_memory_usage: int | None = None
    #: Jobs that shared its forward, itself included; None where none was shared.
    merged: int | None = None
    #: Seconds between acceptance and start.
    queued_seconds: float | None = None


class ResultRef(BaseModel):
    """Where a completed job's saved values lie."""

    model_config = ConfigDict(frozen=True)

    #: Bytes as stored; one zstd frame if `Job.compress`.
    size: int
