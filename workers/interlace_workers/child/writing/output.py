"""Write the saved values in the form that a stock client loads: torch.save, then one zstd frame if it asked for one."""

import importlib
import io
from typing import Any, NoReturn

import cloudpickle
import numpy
import torch
from cloudpickle.cloudpickle import _DYNAMIC_CLASS_TRACKER_BY_CLASS as _ARRIVED

from interlace.protocol.errors import LimitExceeded, UnsendableValue
from interlace_workers.child.writing import packing
from interlace_workers.order import Order

_PROTOCOL = 4
#: A saved view ships its whole storage; one that wastes more than this many bytes is copied first.
_WASTE = 64 << 10
#: Tensors of fewer bytes do not count where it is decided whether a result is worth compressing.
_PROBED = 4 << 10
#: Bytes of tensors that are gathered before they are written.
_LITTLE = 64 << 10


def write(saved: dict[str, Any], result: int, order: Order) -> None:
    """Write ``saved`` to the descriptor ``result``, and close it. Raises LimitExceeded, UnsendableValue, OSError.

    No second copy of a tensor is held in memory.
    """
    with open(result, "wb", buffering=0, closefd=True):
        storages: dict[int, torch.Tensor] = {}
        sink = _Sink(result, order, storages)
        _serialize(saved, sink, storages)
        sink.close()


def dump(value: Any, file: Any) -> None:
    """Write one value as torch.save does, into whatever has `write` and `flush`. Raises what the value raises."""
    if _is_plain(value):
        torch.save(value, file, pickle_protocol=_PROTOCOL)
        return
    torch.save(value, file, pickle_module=_pickle_module({}), pickle_protocol=_PROTOCOL)


def rehearse(saved: dict[str, Any]) -> None:
    """Do what `write` does, and keep nothing."""
    dump(saved, _Nowhere())


def _serialize(saved: dict[str, Any], sink: "_Sink", storages: dict[int, torch.Tensor]) -> None:
    try:
        if _is_small(saved):
            whole = io.BytesIO()
            torch.save(saved, whole, pickle_protocol=_PROTOCOL)
            sink.write(whole.getbuffer())
            return
        torch.save(saved, sink, pickle_module=_pickle_module(storages), pickle_protocol=_PROTOCOL)
    except Exception as error:  # noqa: BLE001 - an object of the user's may refuse in its own way
        if sink.refused is not None:  # torch reports it as an error of its own file format
            raise sink.refused from None
        if isinstance(error, MemoryError) or isinstance(error.__context__, MemoryError):
            raise MemoryError("what the job saved does not fit into its memory once more, serialized") from None
        _blame(saved, error)


def _is_small(saved: dict[str, Any]) -> bool:
    """Whether torch's own pickler will do, and a copy of it all is nothing: that takes two thirds of the time."""
    if not all(map(_is_plain, saved.values())):
        return False
    size: int = sum(value.untyped_storage().nbytes() for value in saved.values())
    return size <= _LITTLE


def _is_plain(value: Any) -> bool:
    """Whether torch's own pickler sends a value as `_ResultPickler` does."""
    return (
        type(value) is torch.Tensor
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and not value.__dict__
        and _waste(value) <= _WASTE
    )


class _Sink:
    """The file that torch.save writes to: gathers small pieces, keeps the limit, and packs as suits what comes."""

    def __init__(self, fd: int, order: Order, storages: dict[int, torch.Tensor]) -> None:
        """``storages`` is filled before the first byte is written: torch pickles first."""
        self._fd = fd
        self._most, self._raw = order.result_bytes, order.raw
        self._storages = storages
        self._packing: packing.Packing | None = None if order.compress else packing.Plain(fd)
        self._gathered = bytearray()
        self._size = 0
        #: What the file said to a write.
        self.refused: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._size += len(view)
        # Over the limit nothing is kept, and all is counted: the error says how large the result is.
        if self._size <= self._most:
            try:
                self._keep(view)
            except OSError as error:
                self.refused = error
                raise
        return len(view)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        """Complete the file. Raises LimitExceeded, OSError."""
        if self._size > self._most:
            raise LimitExceeded(f"The result ({self._size:,} bytes)", self._most, "bytes", "limits.result_bytes")
        if self._packing is None:
            packing.Plain(self._fd).write(memoryview(packing.small(self._gathered)))
            return
        self._packing.write(memoryview(self._gathered))
        self._packing.close(self._size)

    def _keep(self, view: memoryview) -> None:
        if len(self._gathered) + len(view) <= packing.SMALL:
            self._gathered += view
            return
        if self._packing is None:
            self._packing = packing.Raw(self._fd) if self._raw else self._chosen(view)
        self._packing.write(memoryview(self._gathered))
        self._gathered = bytearray()
        self._packing.write(view)

    def _chosen(self, view: memoryview) -> packing.Packing:
        """What suits what is gathered, the bytes that come now, and the storages that will."""
        known = numpy.frombuffer(view, numpy.uint8).ctypes.data in self._storages
        pickled = [memoryview(self._gathered), *([] if known else [view])]
        return packing.choose(self._fd, [*pickled, *map(_bytes_of, self._storages.values())])


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor's whole storage, as they lie in memory."""
    storage: numpy.ndarray[Any, Any] = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
    return storage.data


def _blame(saved: dict[str, Any], error: Exception) -> NoReturn:
    """Raise UnsendableValue for the first value that does not serialize, or else the error itself."""
    for name, value in saved.items():
        try:
            torch.save(value, _Nowhere(), pickle_module=_pickle_module({}), pickle_protocol=_PROTOCOL)
        except Exception as refusal:  # noqa: BLE001 - it is the user's object that refuses
            raise UnsendableValue(name, type(value).__name__, str(refusal)) from None
    raise error


class _Nowhere:
    """A file that forgets."""

    def write(self, data: Any) -> int:
        return len(data)

    def flush(self) -> None:
        pass


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
    """Copies wasteful views, notes large storages, and sends classes that came with the payload back by name.

    Such a class pickles as ``getattr(module, name, by-value twin)``: the client gets its own class, so that
    ``isinstance`` holds there, and the twin where it has none.
    """

    #: Address -> a tensor there.
    storages: dict[int, torch.Tensor]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._twins: dict[type, _Twin] = {}

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) in _TENSORS and obj.device.type not in _HERE:  # its client may have no such device
            return obj.detach().cpu().requires_grad_(obj.requires_grad).__reduce_ex__(_PROTOCOL)
        if type(obj) in _TENSORS and obj.layout is torch.strided:
            if type(obj) is torch.Tensor and _waste(obj) > _WASTE:
                obj = obj.detach().clone().requires_grad_(obj.requires_grad)
                self._note(obj)
                return obj.__reduce_ex__(_PROTOCOL)
            self._note(obj)
        if type(obj) is _Twin:
            return super().reducer_override(obj.cls)
        if isinstance(obj, type) and obj in _ARRIVED and "." not in obj.__qualname__:
            twin = self._twins.setdefault(obj, _Twin(obj))
            return getattr, (_Importable(obj.__module__), obj.__name__, twin)
        return super().reducer_override(obj)

    def _note(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == "cpu" and tensor.untyped_storage().nbytes() >= _PROBED:
            self.storages[tensor.untyped_storage().data_ptr()] = tensor


_TENSORS = (torch.Tensor, torch.nn.Parameter)
#: Devices whose tensors travel as they are.
_HERE = ("cpu", "meta")


def _waste(tensor: torch.Tensor) -> int:
    wasted: int = tensor.untyped_storage().nbytes() - tensor.numel() * tensor.element_size()
    return wasted


def _pickle_module(storages: dict[int, torch.Tensor]) -> type:
    """What torch.save looks for in its ``pickle_module``; its pickler notes large storages in ``storages``."""
    pickler = type("Pickler", (_ResultPickler,), {"storages": storages})
    return type("pickle_module", (), {"Pickler": pickler})
