"""Of the configuration: what gateways and workers stand on, and how long and how together things go on there."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from interlace_state.settings.section import DAY, DECADE, MOST_BYTES, Section, is_http, such


def _is_redis(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("redis", "rediss", "unix") and parts.port != 0


# YAML reads a bare `no` as false.
_Fsync = Annotated[
    Literal["always", "everysec", "no"], BeforeValidator(lambda value: "no" if value is False else value)
]


class RedisConfig(Section):
    """Where jobs, events and the catalogue live."""

    url: Annotated[str, such(_is_redis, "a redis://, rediss:// or unix:// URL")] | None = None
    """`redis://`, `rediss://` or `unix://` URL; default: a server of our own."""
    prefix: str = "interlace:"
    """Put before every key, so that several services can share a server. One set of workers for each prefix,
    and one store."""
    fsync: _Fsync = "everysec"
    """When a server of our own writes to disk what it was told: `always` before it answers,
    `everysec` (a power cut loses a second of it), `no` when the kernel likes."""


class StoreConfig(Section):
    """Where payloads and results lie."""

    url: str | None = None
    """A folder or any fsspec URL that gateways and workers share; default: a folder in `state_dir`."""
    inline_bytes: int = Field(default=1 << 30, ge=0)
    """Results up to this many bytes go over the client's WebSocket, larger ones by a signed URL. Stock nnsight's
    `AsyncRemoteBackend` cannot fetch from a URL."""
    max_bytes: int | None = Field(default=None, gt=0, le=MOST_BYTES)
    """Bytes of payloads and results at which new jobs are refused; default: no bound but the disk's."""
    min_free_bytes: int = Field(default=1 << 30, ge=0, le=MOST_BYTES)
    """Bytes that new jobs must leave free on the disk of a store that is a folder: room for the results of others."""


class LifetimeConfig(Section):
    """How long things are kept, in seconds."""

    result: int = Field(default=DAY, ge=60, le=DECADE)
    """A job's events and result, from its end."""
    result_url: int = Field(default=3600, ge=10, le=DECADE)
    """A signed result URL; each poll signs a new one."""
    waiting: int = Field(default=7 * DAY, ge=60, le=DECADE)
    """A job that nobody has run. Longer than `limits.wall_seconds`."""
    lease: float = Field(default=15.0, ge=1, le=DAY)
    """A worker that is silent for this long has lost its job to another."""
    disconnect_grace: float = Field(default=2.0, ge=0, le=DAY)
    """A job whose client waits for it on a WebSocket and leaves is cancelled after this; a polled job never is,
    nor one whose gateway stops meanwhile."""


class BatchingConfig(Section):
    """Small traces of one tenant that wait for one model at the same time share a forward; see docs/batching.md."""

    enabled: bool = True
    """Whether they may. A run alone is the same bit for bit each time; one that shares its forward differs in the last
    digits, as in a batch that somebody makes by hand."""
    most: int = Field(default=32, ge=2, le=48)
    """Jobs that may share a process."""
    window: float = Field(default=0.003, ge=0, le=0.1)
    """Seconds for which a job whose tenant has others waiting waits for still more."""


class RayConfig(Section):
    """Ray, where `runtime: ray`."""

    address: str | None = None
    """The cluster to join, e.g. `auto` or `ray://head:10001`; default: a local one of our own."""
    object_store_bytes: int = Field(default=100 << 20, ge=80 << 20)
    """Shared memory for a local Ray; payloads never pass through it."""


class TelemetryConfig(Section):
    """What is told of the service elsewhere."""

    endpoint: Annotated[str, such(is_http, "http://HOST or https://HOST")] | None = None
    """An OpenTelemetry collector, which is sent a trace of each job by OTLP over HTTP, e.g. `http://collector:4318`.
    Needs the extra `interlace[otel]`; default: no traces."""
