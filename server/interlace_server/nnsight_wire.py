"""Stock nnsight's words: its request envelope in, its status updates out."""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from interlace.protocol.errors import InvalidRequest
from interlace.protocol.event import Ended, Log, Picture, Progress, Saved, StateChanged
from interlace.protocol.hosting import Moment
from interlace.protocol.job import Cost, JobState
from interlace.protocol.model import ModelKey
from interlace_server import torch_frame
from interlace_server.doors.admission import check_env
from interlace_server.errors import describe
from interlace_server.torch_frame import Plain
from interlace_server.views import sentence
from interlace_state.place import Place

#: nnsight's closed enum; any other word breaks the client.
Status = Literal[
    "RECEIVED", "QUEUED", "PROVISIONING", "DEPLOYING", "DISPATCHED", "RUNNING", "COMPLETED", "ERROR", "LOG"
]
_SESSION_ID = re.compile(r"[0-9a-f]{32}|")
_STATUS: dict[JobState, Status] = {
    JobState.RECEIVED: "RECEIVED",
    JobState.QUEUED: "QUEUED",
    JobState.LEASED: "DISPATCHED",
    JobState.RUNNING: "RUNNING",
    JobState.COMPLETED: "COMPLETED",
    JobState.ERROR: "ERROR",
    JobState.CANCELLED: "ERROR",
}
_SENTENCE: dict[JobState, str] = {
    JobState.RECEIVED: "Your job has been received and is waiting to be queued.",
    JobState.QUEUED: "Added to Queue.",
    JobState.LEASED: "Your job has been sent to the model deployment.",
    JobState.RUNNING: "Your job has started running.",
    JobState.COMPLETED: "Your job has been completed.",
    JobState.ERROR: "Your job has failed, and nobody said why.",
    JobState.CANCELLED: "Request cancelled by operator.",
}


class Envelope(BaseModel):
    """The `data` field of a request; who asks, the job's id and its limits are ours to set and refused here."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model_key: str
    session_id: str = ""
    #: Whether the payload is a zstd frame, and the result shall be one.
    compress: bool = False
    env: dict[str, Any] = Field(default_factory=dict)

    @field_validator("session_id")
    @classmethod
    def _session_id(cls, value: str) -> str:
        if not _SESSION_ID.fullmatch(value):
            raise ValueError("expected the 32 hex digits that /subscribe gave, or an empty string")
        return value

    @classmethod
    def parse(cls, text: str) -> "Envelope":
        """Raises InvalidRequest, naming each field that is wrong."""
        try:
            envelope = cls.model_validate_json(text)
        except ValidationError as error:
            raise InvalidRequest(describe(error, "The request's envelope (`data`)", cls)) from None
        check_env(envelope.env)
        return envelope

    @property
    def model(self) -> ModelKey:
        """Raises InvalidModelKey."""
        return ModelKey.parse(self.model_key)


class Update(BaseModel):
    """One status update, as nnsight's ResponseModel."""

    model_config = ConfigDict(frozen=True)

    id: str
    status: Status
    description: str = ""
    #: Where a completed job's result is, or a value that is too large for the socket: a URL.
    data: str | None = None
    meta: dict[str, Any] | None = None

    def text(self) -> str:
        """A WebSocket text frame."""
        return self.model_dump_json()

    def binary(self, data: Plain) -> bytes:
        """A WebSocket binary frame with the result in it, or a value."""
        return torch_frame.encode(self._with(data))

    def around(self, data: Plain) -> tuple[bytes, bytes]:
        """What is before and behind the one hole in ``data`` in a binary frame."""
        before, behind = torch_frame.encode_around(self._with(data))
        return before, behind

    def _with(self, data: Plain) -> dict[str, Plain]:
        return {
            "id": self.id,
            "status": self.status,
            "description": self.description,
            "data": data,
            "meta": self.meta,
        }


def received(job_id: str) -> Update:
    return Update(id=job_id, status="RECEIVED", description=_SENTENCE[JobState.RECEIVED])


def failed(job_id: str, sentence: str) -> Update:
    """The last update of a stream that cannot go on."""
    return Update(id=job_id, status="ERROR", description=sentence, meta=_meta(Cost()))


def waits(job_id: str, place: Place) -> Update:
    """Where a job stands in its queue."""
    return Update(id=job_id, status="QUEUED", description=place.sentence)


def deploys(job_id: str, moment: Moment) -> Update:
    """What the model does that a job waits for."""
    return Update(id=job_id, status="DEPLOYING", description=sentence(moment))


def saved(job_id: str, event: Saved) -> Update:
    """A value that left before the job's end; its bytes are for the caller to add, as `data` by its name."""
    when = "" if event.step is None else f" of step {event.step}"
    return Update(
        id=job_id,
        status="RUNNING",
        description=f"`{event.name}`{when} has come.",
        meta={"number": event.number, "step": event.step},
    )


def render(job_id: str, event: StateChanged | Log | Progress | Picture | Ended) -> Update:
    """An event in nnsight's words; where the result lies is for the caller to add."""
    if isinstance(event, Log):
        return Update(id=job_id, status="LOG", description=event.text)
    if isinstance(event, Progress):  # stock nnsight writes it over the line that said that the job runs
        return Update(id=job_id, status="RUNNING", description=event.sentence)
    if isinstance(event, Picture):  # nnsight has no place for one
        return Update(id=job_id, status="RUNNING", description=f"A picture: {event.title}".rstrip(": "))
    if isinstance(event, Ended):
        return Update(
            id=job_id,
            status=_STATUS[event.state],
            description=event.text or _SENTENCE[event.state],
            meta=_meta(event.cost),
        )
    if event.state is JobState.QUEUED and not event.model_ready:
        return Update(id=job_id, status="DEPLOYING", description="Model Deploying...")
    return Update(id=job_id, status=_STATUS[event.state], description=event.text or _SENTENCE[event.state])


def _meta(cost: Cost) -> dict[str, Any]:
    return {
        "runtime": _rounded(cost.runtime),
        "max_memory_usage": cost.max_memory_usage or 0,
        "max_mem_by_gpu": {},
        "max_mem_pct_by_gpu": {},
        "cpu_seconds": _rounded(cost.cpu_seconds),
        "queued_seconds": _rounded(cost.queued_seconds),
        **({} if cost.merged is None else {"merged": cost.merged}),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
