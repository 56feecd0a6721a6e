"""What hosts replicas: Ray Serve, or plain supervised processes. One runtime a file, chosen by name."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from pathlib import Path
from typing import Protocol

from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.store import State
from interlace_workers.placement.memory import Room
from interlace_workers.placement.place import Placement


class Host(Protocol):
    """Runs as many replicas of each model as it is told. Closing it lets running jobs end, and ends all."""

    async def keep(self, wanted: Sequence[tuple[Placement, int]]) -> None:
        """Have so many replicas run of each; returns at once. A replica that ends is started again."""

    async def live(self, key: ModelKey) -> int:
        """Replicas of a model that there are, those that start or stop included."""

    async def lacking(self, placement: Placement) -> str:
        """What replicas wait for that were to run and have no place yet, with the numbers; empty if that is nothing."""

    async def drop(self, key: ModelKey) -> None:
        """Stop what runs of a model, let its jobs end, and forget it: another placement may come."""

    async def rooms(self, planned: int, resident: int) -> Sequence[Room]:
        """The machines and what they have free, where replicas here are planned with so many bytes."""


#: ``Path`` is the configuration's file.
Runtime = Callable[[Config, Path, State], AbstractAsyncContextManager[Host]]

_RUNTIMES = {
    "ray": "interlace_workers.runtimes.ray_serve:hosting",
    "process": "interlace_workers.runtimes.process:hosting",
}


def load(name: str) -> Runtime:
    """The runtime of this name; only the chosen one is imported."""
    module, _, attribute = _RUNTIMES[name].partition(":")
    runtime: Runtime = getattr(import_module(module), attribute)
    return runtime
