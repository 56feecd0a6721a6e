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


class Ended(_Event):
    """The job's last event."""

    type: Literal["ended"] = "ended"
    state: Literal[JobState.COMPLETED, JobState.ERROR, JobState.CANCELLED]
    text: str = ""
    result: ResultRef | None = None
    cost: Cost = Cost()


Event = Annotated[StateChanged | Log | Ended, Field(discriminator="type")]
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def encode(event: Event) -> bytes:
    return event.model_dump_json(exclude_defaults=False).encode()


def decode(data: bytes | str) -> Event:
    return _ADAPTER.validate_json(data)
