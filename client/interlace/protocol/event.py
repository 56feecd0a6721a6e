"""What happens to a job, in order. Written by gateway and worker, replayed to whoever follows."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from interlace.protocol.job import Cost, JobState, ResultRef
from interlace.protocol.picture import check_picture

LONGEST_PROGRESS = 2 << 10  # bytes of a frame's body
LONGEST_TITLE = 200  # characters
_MOST_STEPS = 1 << 53
_Metric = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/ -]{1,48}$")]


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


class Progress(_Event):
    """How far the job is: ``step`` steps are done, of ``of`` where that is known.

    Not every step is told, and of a job with several loops each counts from its own start.
    """

    type: Literal["progress"] = "progress"
    step: int = Field(ge=0, le=_MOST_STEPS)
    of: int | None = Field(default=None, ge=0, le=_MOST_STEPS)
    #: What a method measures on the way, such as a loss; None where that is no finite number.
    metrics: dict[_Metric, float | None] = Field(default_factory=dict, max_length=16)

    @property
    def sentence(self) -> str:
        """How far it is, for people."""
        done = f"Step {self.step}" if self.of is None else f"Step {self.step} of {self.of}"
        return ", ".join([done, *(f"{name} {_shown(value)}" for name, value in self.metrics.items())])

    def encode(self) -> bytes:
        """The body of a child's frame."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, body: bytes) -> "Progress":
        """Read what hostile code may have written. Raises ValueError."""
        if len(body) > LONGEST_PROGRESS:
            raise ValueError(f"a word of progress of {len(body)} bytes")
        return cls.model_validate_json(body, strict=True)


def _shown(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4g}"


class Picture(_Event):
    """What a method shows while it runs: a small PNG (`picture.py`). The newest is worth most, and not all are told.

    A job that is run again starts over, and counts from 1 again.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    type: Literal["picture"] = "picture"
    #: From 1, in the order in which they came.
    number: int = Field(ge=1)
    #: One line for people.
    title: str = Field(default="", max_length=LONGEST_TITLE)
    #: How many steps were done.
    step: int | None = Field(default=None, ge=0, le=_MOST_STEPS)
    #: Bytes of the PNG.
    size: int
    #: The PNG, while it travels; it lies at `/v1/jobs/{id}/pictures/{number}`.
    data: bytes | None = None

    @property
    def bare(self) -> "Picture":
        """The event without its bytes."""
        return self.model_copy(update={"data": None})


class Shown(_Event):
    """A picture on its way out of a child: the body of a frame is this as JSON, a line end, and the PNG."""

    title: str = Field(default="", max_length=LONGEST_TITLE)
    step: int | None = Field(default=None, ge=0, le=_MOST_STEPS)

    def encode(self, png: bytes) -> bytes:
        return self.model_dump_json().encode() + b"\n" + png

    @classmethod
    def decode(cls, body: bytes) -> "tuple[Shown, bytes]":
        """Read what hostile code may have written. Raises ValueError."""
        head, _, png = body.partition(b"\n")
        if len(head) > LONGEST_PROGRESS:
            raise ValueError(f"a picture's head of {len(head)} bytes")
        check_picture(png)
        return cls.model_validate_json(head, strict=True), png


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


Event = Annotated[StateChanged | Log | Progress | Picture | Saved | Ended, Field(discriminator="type")]
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def encode(event: Event) -> bytes:
    return event.model_dump_json(exclude_defaults=False).encode()


def decode(data: bytes | str) -> Event:
    return _ADAPTER.validate_json(data)
