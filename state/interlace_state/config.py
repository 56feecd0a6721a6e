"""The one configuration that every part reads: its sections (`settings/`), and what belongs to none."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from interlace_state.settings.adapters import AdaptersConfig
from interlace_state.settings.gateway import GatewayConfig, is_loopback
from interlace_state.settings.hosting import DeployConfig, MemoryConfig, OnDemandConfig
from interlace_state.settings.lake import LakeConfig
from interlace_state.settings.limits import Admission, LimitChanges, TenantConfig
from interlace_state.settings.methods import MethodsConfig
from interlace_state.settings.models import ModelConfig
from interlace_state.settings.page import PageConfig
from interlace_state.settings.section import Section
from interlace_state.settings.services import (
    BatchingConfig,
    LifetimeConfig,
    RayConfig,
    RedisConfig,
    StoreConfig,
    TelemetryConfig,
)

Isolation = Literal["required", "available", "none"]


class Config(Section):
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
    """What a job's process must be cut off from: `required` refuses to work without any layer that matters,
    `available` takes what the kernel offers, `none` runs jobs unprotected.
    Default: `required` where the gateway can be reached from another machine, `available` where it cannot."""
    ray: RayConfig = RayConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    state_dir: Path = Field(default_factory=lambda: Path.home() / ".local" / "state" / "interlace")
    """Results, the embedded Redis, logs."""
    cache_dir: Path = Field(default_factory=lambda: Path.home() / ".cache" / "interlace")
    """Models of a package index, converted. Those of the hub lie in its own cache, which other tools share: `$HF_HOME`,
    by default `~/.cache/huggingface`."""

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
