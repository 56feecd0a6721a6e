"""The one configuration that every part reads: its keys, their types, their defaults."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from interlace.protocol.job import Limits
from interlace.protocol.model import is_repo_id, is_revision, is_task
from interlace_state.adapters_config import AdaptersConfig
from interlace_state.hosting import DeployConfig, MemoryConfig, OnDemandConfig
from interlace_state.lake_config import LakeConfig
from interlace_state.methods_config import MethodsConfig
from interlace_state.page_config import PageConfig
from interlace_state.section import DAY as _DAY
from interlace_state.section import DECADE as _DECADE
from interlace_state.section import MOST_BYTES as _MOST_BYTES
from interlace_state.section import Section as _Section
from interlace_state.section import such as _such


def _is_http(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0


def _is_redis(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("redis", "rediss", "unix") and parts.port != 0


# YAML reads a bare `no` as false.
_Fsync = Annotated[
    Literal["always", "everysec", "no"], BeforeValidator(lambda value: "no" if value is False else value)
]
_DEVICE = re.compile(r"cpu|auto|cuda(:\d{1,3})?")
_Version = Annotated[str, _such(re.compile(r"\d+(\.\d+){0,3}").fullmatch, "a version, e.g. '3.10'")]


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, as seen by itself only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Autoscale(_Section):
    """How many replicas of a model run, by how many jobs wait for it."""

    least: int = Field(default=0, ge=0)
    """Replicas that always run; with 0 an idle model takes no memory, and the next job waits while it is loaded."""
    most: int = Field(default=1, ge=1)
    """Replicas that run at most."""
    jobs_per_replica: int = Field(default=4, ge=1)
    """Jobs, waiting or running, for which one replica is enough; one more job, and another replica starts."""
    idle_seconds: float = Field(default=300.0, ge=0, le=_DAY)
    """How long fewer replicas must have been enough before one is stopped."""

    @model_validator(mode="after")
    def _ordered(self) -> "Autoscale":
        if self.least > self.most:
            raise ValueError(f"`least` is {self.least} and `most` is {self.most}: set `most` to {self.least} or more")
        return self


#: As nnsight names them.
Quantization = Literal["int8", "nf4", "fp4", "fp8"]


class ModelConfig(_Section):
    """One model to host."""

    source: str
    """Where the weights are: a hub repo id, a local path, or `package:DISTRIBUTION==VERSION/FILE.gguf`."""
    repo_id: Annotated[str, _such(is_repo_id, "'name' or 'org/name', as clients can write it")] | None = None
    """The id that clients write; default: the hub's id, or `local/FOLDER` for a path."""
    revision: Annotated[str, _such(is_revision, "a branch, a tag or a commit")] = "main"
    """Branch, tag or commit on the hub."""
    task: Annotated[str, _such(is_task, "a task such as 'text-generation'")] = "text-generation"
    """The transformers pipeline task, or `text-to-text` for an encoder-decoder; it decides the model's modules.
    A diffusers pipeline, known by its model_index.json, has none."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """The type that weights are held in; `auto` takes the checkpoint's own."""
    replicas: int = Field(default=1, ge=1)
    """How many copies of the model run."""
    autoscale: Autoscale | None = None
    """Start and stop replicas by need, in place of `replicas`: `{least: 0, most: 2, jobs_per_replica: 4,
    idle_seconds: 300}`."""
    slots: int = Field(default=1, ge=1)
    """How many jobs a replica runs at the same time, each in a process of its own."""
    threads: int = Field(default=0, ge=0)
    """Processor threads for one job; 0 shares the cores evenly among all slots."""
    trust_remote_code: bool = False
    """Run the Python code that the checkpoint brings. Only for repositories that you have read."""
    quantization: Quantization | None = None
    """Hold the weights in fewer bits, on a GPU: `int8`, `nf4` or `fp4` of bitsandbytes, or `fp8`."""
    gpus: float = Field(default=0, ge=0, le=64)
    """GPUs of a replica, which Ray reserves; 0 holds the model on processors."""
    idle_seconds: float | None = Field(default=None, ge=0, le=_DECADE)
    """How long no job must have come before the model leaves the memory, whatever runs of it; the next job brings it
    back. Default: never by itself."""
    pin: bool = False
    """Keep it in memory: it never leaves for another model, nor for being idle."""
    executor: Literal["fork", "resident"] = "fork"
    """Where a job runs: `fork` in a hardened copy of the model's process, `resident` in that process itself, where
    nothing protects the model, the service's account or other jobs from it. A model on a GPU has to be resident."""
    trusted: tuple[str, ...] = ()
    """Tenants whose jobs a resident model takes; all others are refused. Without keys everybody is `local`."""
    device: Annotated[str, _such(_DEVICE.fullmatch, "cpu, cuda, cuda:0 or auto")] = "cpu"
    """Where a resident model's weights go: `cpu`, `cuda`, `cuda:1`, or `auto`, which spreads them over all GPUs."""

    @model_validator(mode="after")
    def _resident(self) -> "ModelConfig":
        if self.device != "cpu" and self.executor != "resident":
            raise ValueError(
                f"`device` is {self.device}, and a model on a GPU cannot be shared with a hardened process: set "
                "`executor: resident` and name the tenants that you trust in `trusted`, or keep it on the cpu"
            )
        if self.executor == "resident" and not self.trusted:
            raise ValueError(
                "a resident model's jobs run unprotected: name the tenants that you trust with the service's account "
                "in `trusted` (without keys everybody is `local`)"
            )
        if self.executor == "resident" and self.slots != 1:
            raise ValueError(f"a resident model runs one job at a time: `slots` is {self.slots}, set it to 1")
        if self.trusted and self.executor != "resident":
            raise ValueError("`trusted` is for resident models: set `executor: resident`, or leave it out")
        return self

    @property
    def first_replicas(self) -> int:
        """Replicas that start with the service."""
        return self.replicas if self.autoscale is None else self.autoscale.least

    @property
    def most_replicas(self) -> int:
        """Replicas that may run at the same time."""
        return self.replicas if self.autoscale is None else self.autoscale.most


class GatewayConfig(_Section):
    """The HTTP and WebSocket front door."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    public_url: Annotated[str, _such(_is_http, "http://HOST or https://HOST")] | None = None
    """The URL that clients reach the gateway at, for result links; default: the one that the client used.
    Needed where a proxy passes another name than localhost on to a gateway that listens on loopback."""
    min_nnsight: _Version = "0.8.0"
    """The oldest client nnsight that is served."""
    min_python: _Version = "3.10"
    """The oldest client Python that is served."""
    drain_seconds: float = Field(default=10.0, ge=0, le=_DAY)
    """On shutdown, how long open streams may still run to their end."""
    hosts: tuple[str, ...] = ()
    """Names that clients may call the gateway by, in the header `Host`, beside that of `public_url`; none: any name,
    and on loopback those of this machine only."""
    connections: int = Field(default=8192, ge=1)
    """Connections that may be open at the same time; fewer where the process may not open two files for each."""
    connections_per_address: int | None = Field(default=None, ge=1)
    """Connections that one address may have open; default: 256, and from loopback, where a proxy may stand, any number.
    Behind a proxy on another machine every client has the proxy's address: set it to `connections` and bound the
    clients in the proxy."""
    header_seconds: float = Field(default=15.0, gt=0, le=_DAY)
    """How long a client may take to send the headers of a request, from the moment that it connects."""
    stall_seconds: float = Field(default=60.0, gt=0, le=_DAY)
    """How long a client may send nothing of a body that it has begun, or read nothing of what it is sent."""


class RedisConfig(_Section):
    """Where jobs, events and the catalogue live."""

    url: Annotated[str, _such(_is_redis, "a redis://, rediss:// or unix:// URL")] | None = None
    """`redis://`, `rediss://` or `unix://` URL; default: a server of our own."""
    prefix: str = "interlace:"
    """Put before every key, so that several services can share a server. One set of workers for each prefix."""
    fsync: _Fsync = "everysec"
    """When a server of our own writes to disk what it was told: `always` before it answers,
    `everysec` (a power cut loses a second of it), `no` when the kernel likes."""


class StoreConfig(_Section):
    """Where payloads and results lie."""

    url: str | None = None
    """A folder or any fsspec URL that gateways and workers share; default: a folder in `state_dir`."""
    inline_bytes: int = Field(default=1 << 30, ge=0)
    """Results up to this many bytes go over the client's WebSocket, larger ones by a signed URL. Stock nnsight's
    `AsyncRemoteBackend` cannot fetch from a URL."""
    max_bytes: int | None = Field(default=None, gt=0, le=_MOST_BYTES)
    """Bytes of payloads and results at which new jobs are refused; default: no bound but the disk's."""
    min_free_bytes: int = Field(default=1 << 30, ge=0, le=_MOST_BYTES)
    """Bytes that new jobs must leave free on the disk of a store that is a folder: room for the results of others."""


class LifetimeConfig(_Section):
    """How long things are kept, in seconds."""

    result: int = Field(default=_DAY, ge=60, le=_DECADE)
    """A job's events and result, from its end."""
    result_url: int = Field(default=3600, ge=10, le=_DECADE)
    """A signed result URL; each poll signs a new one."""
    waiting: int = Field(default=7 * _DAY, ge=60, le=_DECADE)
    """A job that nobody has run. Longer than `limits.wall_seconds`."""
    lease: float = Field(default=15.0, ge=1, le=_DAY)
    """A worker that is silent for this long has lost its job to another."""
    disconnect_grace: float = Field(default=2.0, ge=0, le=_DAY)
    """A job whose client waits for it on a WebSocket and leaves is cancelled after this; a polled job never is."""


class BatchingConfig(_Section):
    """Small traces of one tenant that wait for one model at the same time share a forward; see docs/batching.md."""

    enabled: bool = True
    """Whether they may. A run alone is the same bit for bit each time; one that shares its forward differs in the last
    digits, as in a batch that somebody makes by hand."""
    most: int = Field(default=32, ge=2, le=48)
    """Jobs that may share a process."""
    window: float = Field(default=0.003, ge=0, le=0.1)
    """Seconds for which a job whose tenant has others waiting waits for still more."""


class RayConfig(_Section):
    """Ray, where `runtime: ray`."""

    address: str | None = None
    """The cluster to join, e.g. `auto` or `ray://head:10001`; default: a local one of our own."""
    object_store_bytes: int = Field(default=100 << 20, ge=80 << 20)
    """Shared memory for a local Ray; payloads never pass through it."""


class TelemetryConfig(_Section):
    """What is told of the service elsewhere."""

    endpoint: Annotated[str, _such(_is_http, "http://HOST or https://HOST")] | None = None
    """An OpenTelemetry collector, which is sent a trace of each job by OTLP over HTTP, e.g. `http://collector:4318`.
    Needs the extra `interlace[otel]`; default: no traces."""


def _possible(value: float) -> float:
    """A limit that can be kept. Raises ValueError."""
    if not value > 0:
        raise ValueError("should be greater than 0")
    if value > _MOST_BYTES:
        raise ValueError(f"should be at most {_MOST_BYTES}")
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
    """Jobs of one tenant that are known; over it, the oldest that have ended are forgotten before their time."""
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


class LimitChanges(_Section):
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

    weight: float = Field(default=1.0, gt=0, le=1000)
    """How many times the seconds it gets of a tenant with weight 1, where both have jobs that wait."""
    batching: bool | None = None
    """Whether its traces may share a forward; default: `batching.enabled`."""


Isolation = Literal["required", "available", "none"]


class Config(_Section):
    """All of it."""

    runtime: Literal["ray", "process"] = "ray"
    """`ray` hosts replicas with Ray Serve, `process` as plain supervised processes."""
    models: tuple[ModelConfig, ...] = ()
    """The models to host."""
    on_demand: OnDemandConfig = OnDemandConfig()
    deploy: DeployConfig = DeployConfig()
    memory: MemoryConfig = MemoryConfig()
    gateway: GatewayConfig = GatewayConfig()
    redis: RedisConfig = RedisConfig()
    store: StoreConfig = StoreConfig()
    lifetimes: LifetimeConfig = LifetimeConfig()
    batching: BatchingConfig = BatchingConfig()
    adapters: AdaptersConfig = AdaptersConfig()
    methods: MethodsConfig = MethodsConfig()
    page: PageConfig = PageConfig()
    lake: LakeConfig = LakeConfig()
    limits: Admission = Admission()
    roles: dict[str, LimitChanges] = Field(default_factory=dict)
    """Limits of a role (`user`, `admin`), where they differ from `limits`."""
    tenants: dict[str, TenantConfig] = Field(default_factory=dict)
    """Limits of a tenant, where they differ from `limits` and from those of its role, and its weight."""
    isolation: Isolation | None = None
    """What a job's process must be cut off from: `required` refuses to work without any layer that matters, `available`
    takes what the kernel offers, `none` is unprotected. Default: `required` if other machines can reach the gateway."""
    ray: RayConfig = RayConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    state_dir: Path = Field(default_factory=lambda: Path.home() / ".local" / "state" / "interlace")
    """Results, the embedded Redis, logs."""
    cache_dir: Path = Field(default_factory=lambda: Path.home() / ".cache" / "interlace")
    """Models that were fetched or converted."""

    @field_validator("state_dir", "cache_dir")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return folder.expanduser().absolute()

    @model_validator(mode="after")
    def _protected(self) -> "Config":
        resident = [model.source for model in self.models if model.executor == "resident"]
        if self.isolation == "required" and resident:
            raise ValueError(
                f"`isolation: required` leaves no room for resident models, whose jobs run unprotected: {resident}. "
                "Leave `isolation` out to have it for all others"
            )
        return self

    @property
    def exposed(self) -> bool:
        """Whether others than this machine's own users can reach the gateway, directly or through a proxy."""
        public = urlsplit(self.gateway.public_url or "").hostname
        return not (is_loopback(self.gateway.host) and (public is None or is_loopback(public)))

    @property
    def isolation_level(self) -> Isolation:
        return self.isolation or ("required" if self.exposed else "available")

    def limits_of(self, tenant: str, role: str) -> Admission:
        """A tenant's limits: the general ones, its role's over them, its own over both."""
        changes = [self.roles.get(role), self.tenants.get(tenant)]
        names = set(LimitChanges.model_fields)
        named = [change.model_dump(include=names, exclude_none=True) for change in changes if change is not None]
        return self.limits.model_copy(update={name: value for change in named for name, value in change.items()})

    def batches(self, tenant: str) -> bool:
        """Whether a tenant's traces may share a forward."""
        own = self.tenants[tenant].batching if tenant in self.tenants else None
        return self.batching.enabled if own is None else own

    @property
    def store_url(self) -> str:
        return self.store.url or str(self.state_dir / "store")
