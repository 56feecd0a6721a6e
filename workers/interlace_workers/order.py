"""What the processes around a sandbox say to each other, as data."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Load:
    """Which model a zygote loads."""

    #: A local Hugging Face directory: of one model, or of a pipeline of several.
    path: str
    task: str | None
    #: A type of torch's, "auto", or one of nnsight's quantizations.
    dtype: str
    trust_remote_code: bool
    #: Processor threads that a child may use.
    threads: int
    #: `Config.isolation_level`.
    isolation: str = "available"
    #: Where the weights go: "cpu", a device of torch's, or "auto", as accelerate spreads them.
    device: str = "cpu"
    #: Whether jobs run in the process that loads it.
    resident: bool = False
    #: Layers of the sandbox to leave out; tests show with it that each of them matters.
    without: tuple[str, ...] = ()
    #: Whether diffusers loads it, and not transformers.
    is_pipeline: bool = False
    #: What its weights will take, as its files tell; 0 where that is not known, or they stay where they are loaded.
    size_bytes: int = 0


@dataclass(frozen=True)
class Loaded:
    """A zygote's report that it is ready to fork."""

    n_params: int
    size_bytes: int
    #: For a token to go forward once, as measured after loading; None where that was not tried.
    token_seconds: float | None = None
    #: The sandbox's layers around each child, and why the others are missing.
    layers: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    #: From the start of the zygote's process to here, imports included, without the wait for what to load; None where
    #: it was there already, for another replica.
    seconds: float | None = field(default=None, compare=False)


Use = Literal["adapter", "edit", "input", "checkpoint"]


@dataclass(frozen=True)
class Adapter:
    """One artifact, as a child sees it. Beside it comes a sealed descriptor: its configuration, then its tensors."""

    #: `artifact.ArtifactKind`.
    kind: str
    #: What the request calls it.
    name: str
    #: Bytes of the configuration; a safetensors file follows at once.
    config_bytes: int
    weight: float = 1.0
    #: Of a pipeline's LoRA: the timesteps at which it is on.
    t_min: float | None = None
    t_max: float | None = None
    #: What it is there for: to be attached, to be on as an addition, to be opened by a method, to go on from.
    use: Use = "adapter"


@dataclass(frozen=True)
class MethodOrder:
    """What the child of a method knows beside its payload. Beside it come descriptors for artifacts and checkpoints."""

    #: What the ids of its artifacts are made of.
    nonce: str
    #: Of all its artifacts together.
    artifact_bytes: int
    checkpoint_bytes: int
    checkpoint_seconds: float


@dataclass(frozen=True)
class Order:
    """One job, as its child sees it. Beside it come descriptors of payload, result, events, logs and values."""

    compress: bool
    env: dict[str, Any] = field(default_factory=dict)
    memory_bytes: int = 0
    unpacked_bytes: int = 0
    result_bytes: int = 0
    #: Whether the result is packed as it is.
    raw: bool = False
    #: Values that may stream; bytes of what is saved that stream unless user code sends them itself.
    streamed_values: int = 0
    offered_bytes: int = 0
    cpu_seconds: float = 0.0
    #: Their descriptors come last.
    adapters: tuple[Adapter, ...] = ()
    #: None for a trace.
    method: MethodOrder | None = None

    def as_message(self) -> dict[str, Any]:
        adapters, method = [vars(one) for one in self.adapters], self.method and vars(self.method)
        return vars(self) | {"adapters": adapters, "method": method}

    @classmethod
    def of_message(cls, message: dict[str, Any]) -> "Order":
        adapters, method = message["adapters"], message["method"]
        parts = {"adapters": tuple(Adapter(**one) for one in adapters), "method": method and MethodOrder(**method)}
        return cls(**{**message, **parts})
