"""Write the saved values in the form that a stock client loads: torch.save, then one zstd frame if it asked for one."""

import importlib
import io
from typing import Any, NoReturn

import cloudpickle
import torch
import zstandard
from cloudpickle.cloudpickle import _DYNAMIC_CLASS_TRACKER_BY_CLASS as _ARRIVED

from interlace.protocol.errors import LimitExceeded, UnsendableValue
from interlace_workers.order import Order

_PROTOCOL = 4
_LEVEL = 3
#: A saved view ships its whole storage; one that wastes more than this many bytes is copied first.
_WASTE = 64 << 10
_CHUNK = 4 << 20


def write(saved: dict[str, Any], result: int, order: Order) -> None:
    """Write ``saved`` to the descriptor ``result``. Raises LimitExceeded, UnsendableValue."""
    buffer = _serialized(saved)
    size = buffer.tell()
    if size > order.result_bytes:
        raise LimitExceeded(f"The result ({size:,} bytes)", order.result_bytes, "bytes", "limits.result_bytes")
    view = buffer.getbuffer()
    with open(result, "wb", closefd=True) as file:
        if not order.compress:
            file.write(view)
            return
        # The client decompresses in one call, which needs the size in the frame's header.
        packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj(size=size)
        for start in range(0, size, _CHUNK):
            file.write(packer.compress(view[start : start + _CHUNK]))
        file.write(packer.flush())


def dump(value: Any, file: Any) -> None:
    """Write one value as torch.save does, into whatever has `write` and `flush`. Raises what the value raises."""
    torch.save(value, file, pickle_module=_PickleModule, pickle_protocol=_PROTOCOL)


def _serialized(saved: dict[str, Any]) -> io.BytesIO:
    buffer = io.BytesIO()
    try:
        torch.save(saved, buffer, pickle_module=_PickleModule, pickle_protocol=_PROTOCOL)
    except Exception as error:  # noqa: BLE001 - an object of the user's may refuse in its own way
        # torch reports a buffer that cannot grow as an error of its own file format.
        if isinstance(error, MemoryError) or isinstance(error.__context__, MemoryError):
            raise MemoryError("what the job saved does not fit into its memory once more, serialized") from None
        _blame(saved, error)
    return buffer


def _blame(saved: dict[str, Any], error: Exception) -> NoReturn:
    """Raise UnsendableValue for the first value that does not serialize, or else the error itself."""
    for name, value in saved.items():
        try:
            torch.save(value, io.BytesIO(), pickle_module=_PickleModule, pickle_protocol=_PROTOCOL)
        except Exception as refusal:  # noqa: BLE001 - it is the user's object that refuses
            raise UnsendableValue(name, type(value).__name__, str(refusal)) from None
    raise error


class _Importable:
    """Pickles as a call of ``importlib.import_module``: a module, looked up where the result is loaded."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self._module,)


class _Twin:
    """Stands for a class that is to be pickled by value."""

    def __init__(self, cls: type) -> None:
        self.cls = cls


class _ResultPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Copies wasteful views, and sends classes that came with the payload back by name.

    Such a class pickles as ``getattr(module, name, by-value twin)``: the client gets its own class, so that
    ``isinstance`` holds there, and the twin where it has none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._twins: dict[type, _Twin] = {}

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is torch.Tensor and obj.layout is torch.strided and _waste(obj) > _WASTE:
            return obj.detach().clone().requires_grad_(obj.requires_grad).__reduce_ex__(_PROTOCOL)
        if type(obj) is _Twin:
            return super().reducer_override(obj.cls)
        if isinstance(obj, type) and obj in _ARRIVED and "." not in obj.__qualname__:
            twin = self._twins.setdefault(obj, _Twin(obj))
            return getattr, (_Importable(obj.__module__), obj.__name__, twin)
        return super().reducer_override(obj)


def _waste(tensor: torch.Tensor) -> int:
    wasted: int = tensor.untyped_storage().nbytes() - tensor.numel() * tensor.element_size()
    return wasted


class _PickleModule:
    """What torch.save looks for in its ``pickle_module``."""

    Pickler = _ResultPickler
