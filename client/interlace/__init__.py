"""Interlace: remote intervention in hosted models.

Stock nnsight needs nothing of this package: set ``NDIF_HOST`` to a gateway and write ``remote=True``. `connect` gives a
client that keeps its connections, for traces and for what nnsight has no word for: values that stream, jobs. It needs
httpx and websocket-client, and is loaded on first use. `stream` hands a value over from within a traced block.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interlace._client import Client, connect
    from interlace._errors import JobFailed, Refused, Unreachable
    from interlace._jobs import RunningJob, Value
    from interlace._methods import RunningMethod
    from interlace._sae import sae
    from interlace._tasks import add_tasks
    from interlace.methods.shared.images import ImageLimits
    from interlace.protocol.artifact import Artifact
    from interlace.protocol.errors import InterlaceError

from interlace._values import receiving, stream

__version__ = "0.1.0"
__all__ = [
    "Artifact",
    "Client",
    "ImageLimits",
    "InterlaceError",
    "JobFailed",
    "Refused",
    "RunningJob",
    "RunningMethod",
    "Unreachable",
    "Value",
    "__version__",
    "add_tasks",
    "connect",
    "receiving",
    "sae",
    "stream",
]
_HOMES = {
    "Client": "_client",
    "connect": "_client",
    "JobFailed": "_errors",
    "Refused": "_errors",
    "Unreachable": "_errors",
    "RunningJob": "_jobs",
    "Value": "_jobs",
    "RunningMethod": "_methods",
    "Artifact": "protocol.artifact",
    "InterlaceError": "protocol.errors",
    "add_tasks": "_tasks",
    "sae": "_sae",
    "ImageLimits": "methods.shared.images",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"interlace.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
