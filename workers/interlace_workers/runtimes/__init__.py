"""What hosts replicas: Ray Serve, or plain supervised processes. One runtime a file, chosen by name."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from pathlib import Path

from interlace_state.config import Config
from interlace_state.store import State
from interlace_workers.placement import Placement

#: Hosts the placements until the event is set, then lets running jobs end. ``Path`` is the configuration's file.
Runtime = Callable[[Config, Path, State, Sequence[Placement], asyncio.Event], Awaitable[None]]

_RUNTIMES = {
    "ray": "interlace_workers.runtimes.ray_serve:host",
    "process": "interlace_workers.runtimes.process:host",
}


def load(name: str) -> Runtime:
    """The runtime of this name; only the chosen one is imported."""
    module, _, attribute = _RUNTIMES[name].partition(":")
    runtime: Runtime = getattr(import_module(module), attribute)
    return runtime
