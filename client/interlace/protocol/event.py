"""What happens to a job, in order. Written by gateway and worker, replayed to whoever follows."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from interlace.protocol.job import Cost, JobState, ResultRef


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)


class StateChanged(_Event):
    """The job moved on; ``text`` is one sentence for people."""

    type: Literal["state"] = "state"
    state: JobState
    text: str = ""
    #: False while the job waits for its model to load.
    model_ready: bool = True


class Log(_Event):
    """One line that user code printed."""

    type: Literal["log"] = "log"
    text: str


class Saved(_Event):
    """A value that left before its job's end. Its bytes are what torch.save wrote of it, uncompressed.

    A job that is run again starts over: a number that a client has already is the same value once more.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    type: Literal["saved"] = "saved"
    #: From 1, in the order in which they left.
    number: int
    name: str
    #: The step of a generation, from 0; None outside of steps.
    step: int | None = None
    #: Bytes.
    size: int
    #: Small values only; others lie at `/v1/jobs/{id}/values/{number}`.
    data: bytes | None = None

    @property
    def bare(self) -> "Saved":
        """The event without the value's bytes."""
        return self.model_copy(update={"data": None})


class Ended(_Event):
    """The job's last event."""

    type: Literal["ended"] = "ended"
    state: Literal[JobState.COMPLETED, JobState.ERROR, JobState.CANCELLED]
    text: str = ""
    result: ResultRef | None = None
    cost: Cost = Cost()


Event = Annotated[StateChanged | Log | Saved | Ended, Field(discriminator="type")]
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def encode(event: Event) -> bytes:
    return event.model_dump_json(exclude_defaults=False).encode()


def decode(data: bytes | str) -> Event:
    return _ADAPTER.validate_json(data)
