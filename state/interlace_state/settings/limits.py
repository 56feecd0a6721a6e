"""Of the configuration: what one job and one tenant may use."""

from typing import Annotated

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from interlace.protocol.job import Limits
from interlace_state.settings.section import MOST_BYTES, Section

LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1000.0
#: A tenant's share of the workers, beside those of others that wait.
Weight = Annotated[float, Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT)]


def _possible(value: float) -> float:
    """A limit that can be kept. Raises ValueError."""
    if not value > 0:
        raise ValueError("should be greater than 0")
    if value > MOST_BYTES:
        raise ValueError(f"should be at most {MOST_BYTES}")
    return value


class Admission(Limits):
    """What one job may use, and what the gateway takes in."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    payload_bytes: int = Field(default=256 << 20, gt=0)
    """Bytes of a request's body."""
    waiting_jobs: int = Field(default=10_000, gt=0)
    """Jobs of one tenant that may wait or run, of one model."""
    running_jobs: int = Field(default=64, gt=0)
    """Jobs of one tenant that may run at the same time, of all models."""
    requests_per_minute: int = Field(default=6_000, gt=0)
    """Requests of one tenant that are answered in a minute."""
    kept_jobs: int = Field(default=10_000, gt=0)
    """Jobs of one tenant that are known; over it, the oldest that have ended are forgotten before their time, and
    their results go within minutes."""
    artifact_bytes: int = Field(default=1 << 30, gt=0)
    """Bytes of one artifact."""
    kept_artifact_bytes: int = Field(default=16 << 30, gt=0)
    """Bytes of all artifacts of one tenant."""
    kept_artifacts: int = Field(default=1_000, gt=0)
    """Artifacts of one tenant."""

    @field_validator("*")
    @classmethod
    def _checked(cls, value: float) -> float:
        return _possible(value)


class LimitChanges(Section):
    """Limits that differ from `limits` for one role or one tenant; what is not named stays."""

    wall_seconds: float | None = Field(default=None, gt=0)
    memory_bytes: int | None = Field(default=None, gt=0)
    unpacked_bytes: int | None = Field(default=None, gt=0)
    result_bytes: int | None = Field(default=None, gt=0)
    log_bytes: int | None = Field(default=None, gt=0)
    streamed_values: int | None = Field(default=None, gt=0)
    unasked_bytes: int | None = Field(default=None, gt=0)
    payload_bytes: int | None = Field(default=None, gt=0)
    waiting_jobs: int | None = Field(default=None, gt=0)
    running_jobs: int | None = Field(default=None, gt=0)
    requests_per_minute: int | None = Field(default=None, gt=0)
    kept_jobs: int | None = Field(default=None, gt=0)
    artifact_bytes: int | None = Field(default=None, gt=0)
    kept_artifact_bytes: int | None = Field(default=None, gt=0)
    kept_artifacts: int | None = Field(default=None, gt=0)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and info.field_name != "batching":
            raise ValueError("expected a number")  # pydantic would take true for 1
        return value

    @field_validator("*")
    @classmethod
    def _checked(cls, value: float | None) -> float | None:
        return value if value is None or isinstance(value, bool) else _possible(value)


class TenantConfig(LimitChanges):
    """One tenant's limits and share."""

    weight: Weight = 1.0
    """How many times the seconds it gets of a tenant with weight 1, where both have jobs that wait."""
    batching: bool | None = None
    """Whether its traces may share a forward; default: `batching.enabled`."""
