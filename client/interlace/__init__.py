"""Interlace: remote intervention in hosted models.

Stock nnsight needs nothing of this package: set ``NDIF_HOST`` to a gateway and write ``remote=True``. `Client` is for
what nnsight has no word for: look at jobs, follow them, cancel them. It needs httpx, and is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interlace.client import Client

from interlace._values import receiving, stream

__version__ = "0.1.0"
__all__ = ["Client", "__version__", "receiving", "stream"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        return import_module("interlace.client").Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
