"""A method as a job: what is asked for, what travels with the job, what comes back."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from interlace.protocol.artifact import AdapterRef
from interlace.protocol.errors import InvalidRequest
from interlace.protocol.ids import JOB_ID

MOST_ARTIFACTS = 32  # that a job may be given
LONGEST_RESULT = 32 << 20  # bytes of JSON
_MOST_SEED = (1 << 63) - 1


class MethodRequest(BaseModel):
    """The body of `POST /v1/jobs`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(min_length=1, max_length=128)
    """`NAME@VERSION`, or a name: its newest version."""
    model: str = Field(min_length=1, max_length=1024)
    """A hosted model: its repo id, its slug, or its key as nnsight writes it."""
    params: dict[str, Any] = Field(default_factory=dict)
    """What the method takes; `GET /v1/methods/NAME` has the schema."""
    inputs: dict[str, Any] = Field(default_factory=dict)
    """More of `params`: fields whose values are data, inline or `artifact:ID`."""
    edits: list[str] = Field(default_factory=list, max_length=MOST_ARTIFACTS)
    """Artifacts of the kinds `edit` and `peft` that are on while it runs."""
    seed: int = Field(default=0, ge=0, le=_MOST_SEED)
    """What all its randomness comes from."""
    dry_run: bool = False
    """Run nothing, and answer with what it would cost."""
    resume: str | None = Field(default=None, pattern=f"^{JOB_ID}$")
    """A job of one's own that failed or was cancelled: go on from its last checkpoint. What is left out is as there."""


class Allowance(BaseModel):
    """What a job may leave behind, as it held for its tenant when the job came."""

    model_config = ConfigDict(frozen=True)

    #: Bytes of one artifact; bytes and number of all that its tenant keeps.
    artifact_bytes: int
    kept_artifact_bytes: int
    kept_artifacts: int
    #: Of one checkpoint.
    checkpoint_bytes: int
    #: Between two of them.
    checkpoint_seconds: float
    #: Seconds for its last words, once it is cancelled.
    cancel_grace: float


class MethodCall(BaseModel):
    """What of a request travels in the job's record; its parameters are the payload."""

    model_config = ConfigDict(frozen=True)

    #: `NAME@VERSION`.
    ref: str
    seed: int = 0
    #: What it is given, as the request names it -> the kinds that will do.
    opens: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    edits: tuple[str, ...] = ()
    #: Of the parameters with every default filled in.
    params_sha256: str
    allowance: Allowance
    #: The job whose last checkpoint it begins with.
    resume: str | None = None
    #: The id of the API key that the request came with.
    creator: str | None = None


class Payload(BaseModel):
    """A method job's payload, as JSON."""

    model_config = ConfigDict(frozen=True)

    method: str
    #: With every default filled in.
    params: dict[str, Any]
    edits: tuple[str, ...] = ()
    seed: int = 0


class Made(BaseModel):
    """An artifact that a run has given."""

    model_config = ConfigDict(frozen=True)

    #: `artifact:ID@HASH`.
    ref: str
    kind: str
    name: str
    #: Bytes of all its files.
    size: int

    @property
    def id(self) -> str:
        """As the lake has it."""
        return self.ref.removeprefix("artifact:").partition("@")[0]


class Provenance(BaseModel):
    """Where a result comes from."""

    model_config = ConfigDict(frozen=True)

    job: str
    method: str
    #: The model's canonical key, and the commit of its weights.
    model: str
    revision: str
    dtype: str
    device: str
    #: Python's and the libraries' versions, where it ran.
    libraries: dict[str, str]
    #: The parameters with every default filled in.
    params: dict[str, Any]
    seed: int
    edits: tuple[str, ...] = ()
    #: Artifact or field -> SHA-256 of what was read of it.
    data_sha256: dict[str, str] = Field(default_factory=dict)


class MethodCost(BaseModel):
    """What a run has used; of one that was resumed, the last part."""

    model_config = ConfigDict(frozen=True)

    #: Of wall time in the sandbox.
    seconds: float | None = None
    forwards: int = 0
    backwards: int = 0
    tokens: int = 0
    #: Over what the model itself holds.
    peak_bytes: int | None = None


class Envelope(BaseModel):
    """The stored result of a method's job."""

    model_config = ConfigDict(frozen=True)

    status: Literal["completed", "cancelled"]
    #: As the method's own type of results writes it.
    result: dict[str, Any]
    artifacts: tuple[Made, ...] = ()
    provenance: Provenance
    warnings: tuple[str, ...] = ()
    cost: MethodCost


class Outcome(BaseModel):
    """What a child writes into its result: hostile until it is looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    result: dict[str, Any]
    forwards: int = Field(default=0, ge=0)
    backwards: int = Field(default=0, ge=0)
    tokens: int = Field(default=0, ge=0)
    dtype: str = Field(max_length=64)
    device: str = Field(max_length=64)
    libraries: dict[str, str] = Field(max_length=64)
    data_sha256: dict[str, str] = Field(default_factory=dict, max_length=256)
    warnings: tuple[str, ...] = Field(default=(), max_length=64)


def named(params: Mapping[str, Any], takes: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The artifacts that parameters name -> the kinds that will do. Raises InvalidRequest for a text that names none.

    A field holds one name, or a list or a mapping in which every text that begins with `artifact:` is one.
    """
    found: dict[str, tuple[str, ...]] = {}
    for field, kinds in takes.items():
        for place, value in _values(params, field.split("."), "params"):
            for text in _texts(value):
                ref = AdapterRef.parse(text, place)
                if ref.place != "artifact":
                    raise InvalidRequest(
                        f"`{place}` is {text[:96]!r}; expected artifact:ID of an artifact of the kind "
                        f"{' or '.join(kinds)}, or the data itself."
                    )
                found[text] = tuple(kinds)
    if len(found) > MOST_ARTIFACTS:
        raise InvalidRequest(f"The request names {len(found)} artifacts; a job may be given {MOST_ARTIFACTS}.")
    return found


def _values(params: Any, names: Sequence[str], place: str) -> Iterator[tuple[str, Any]]:
    """The values of a field, whose name has dots for nesting, with their places."""
    if not names:
        yield place, params
    elif isinstance(params, list):
        for number, one in enumerate(params):
            yield from _values(one, names, f"{place}.{number}")
    elif isinstance(params, dict) and params.get(names[0]) is not None:
        yield from _values(params[names[0]], names[1:], f"{place}.{names[0]}")


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [one for one in inside if isinstance(one, str) and one.startswith("artifact:")]
