"""Of the configuration: the models to host."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from interlace.protocol.model import is_repo_id, is_revision, is_task
from interlace_state.settings.section import DAY, DECADE, Section, such

#: Replicas of one model that anybody can ask for. Each is a process of its own: more is a slip of the finger.
MOST_REPLICAS = 256
_DEVICE = re.compile(r"cpu|auto|cuda(:\d{1,3})?")


class Autoscale(Section):
    """How many replicas of a model run, by how many jobs wait for it."""

    least: int = Field(default=0, ge=0, le=MOST_REPLICAS)
    """Replicas that always run; with 0 an idle model takes no memory, and the next job waits while it is loaded."""
    most: int = Field(default=1, ge=1, le=MOST_REPLICAS)
    """Replicas that run at most."""
    jobs_per_replica: int = Field(default=4, ge=1)
    """Jobs, waiting or running, for which one replica is enough; one more job, and another replica starts."""
    idle_seconds: float = Field(default=300.0, ge=0, le=DAY)
    """How long fewer replicas must have been enough before one is stopped."""

    @model_validator(mode="after")
    def _ordered(self) -> "Autoscale":
        if self.least > self.most:
            raise ValueError(f"`least` is {self.least} and `most` is {self.most}: set `most` to {self.least} or more")
        return self


#: As nnsight names them.
Quantization = Literal["int8", "nf4", "fp4", "fp8"]


class ModelConfig(Section):
    """One model to host."""

    source: str
    """Where the weights are: a hub repo id, a local path, or `package:DISTRIBUTION==VERSION/FILE.gguf`."""
    repo_id: Annotated[str, such(is_repo_id, "'name' or 'org/name', as clients can write it")] | None = None
    """The id that clients write; default: the hub's id, or `local/FOLDER` for a path."""
    revision: Annotated[str, such(is_revision, "a branch, a tag or a commit")] = "main"
    """Branch, tag or commit on the hub."""
    task: Annotated[str, such(is_task, "a task such as 'text-generation'")] = "text-generation"
    """The transformers pipeline task, or `text-to-text` for an encoder-decoder; it decides the model's modules.
    A diffusers pipeline, known by its model_index.json, has none."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """The type that weights are held in; `auto` takes the checkpoint's own."""
    replicas: int = Field(default=1, ge=1, le=MOST_REPLICAS)
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
    """Hold the weights in fewer bits, in place of `dtype`: `int8`, `nf4` or `fp4` of bitsandbytes, which
    `interlace[quantized]` brings, or on a GPU `fp8`."""
    gpus: float = Field(default=0, ge=0, le=64)
    """GPUs of a replica, which Ray reserves; 0 holds the model on processors."""
    idle_seconds: float | None = Field(default=None, ge=0, le=DECADE)
    """How long no job must have come before the model leaves the memory, whatever runs of it; the next job brings it
    back. Default: never by itself."""
    pin: bool = False
    """Keep it in memory: it never leaves for another model, nor for being idle."""
    executor: Literal["fork", "resident"] = "fork"
    """Where a job runs: `fork` in a hardened copy of the model's process, `resident` in that process itself, where
    nothing protects the model, the service's account or other jobs from it. A model on a GPU has to be resident."""
    trusted: tuple[str, ...] = ()
    """Tenants whose jobs a resident model takes; all others are refused. Without keys everybody is `local`."""
    device: Annotated[str, such(_DEVICE.fullmatch, "cpu, cuda, cuda:0 or auto")] = "cpu"
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
