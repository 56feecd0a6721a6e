"""Read a payload without running anything of it: what only a run alone may unpickle is refused."""

import importlib
import io
from collections.abc import Callable
from types import MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch

from interlace_workers.child.merging import allowed
from interlace_workers.child.merging.slab import NotMergeable
from interlace_workers.child.trace import Unpickler

#: What a plain trace is made of, beside its values.
_TRACE = {
    ("nnsight.intervention.envoy", "Envoy"),
    ("nnsight.intervention.tracer", "InterleavingTracer"),
    ("nnsight.modeling.language", "LanguageModel"),
    ("nnsight.modeling.transformers", "GeneratorEnvoy"),
    ("nnsight.modeling.transformers", "TransformersModel"),
    ("nnsight.modeling.transformers", "TransformersModel._call"),
    ("nnsight.tracing.tracer", "Tracer.Info"),
    ("nnsight.tracing.util", "SerializedFrame"),
}
_VALUES = {
    ("builtins", "bytearray"),
    ("builtins", "complex"),
    ("builtins", "frozenset"),
    ("builtins", "range"),
    ("builtins", "set"),
    ("builtins", "slice"),
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


_TYPES: dict[str, type] = {"MethodType": MethodType, "SimpleNamespace": SimpleNamespace}


def _module(name: str) -> ModuleType:
    if name not in allowed.MODULES:
        raise NotMergeable(f"the module {name}")
    return importlib.import_module(name)


def _storage(data: bytes) -> Any:
    """As torch.storage._load_from_bytes, for data only."""
    return torch.load(io.BytesIO(data), weights_only=True)


def _builtin_type(name: str) -> type:
    if name not in _TYPES:
        raise NotMergeable(f"the type {name}")
    return _TYPES[name]


_INSTEAD: dict[tuple[str, str], Callable[..., Any]] = {
    ("cloudpickle.cloudpickle", "subimport"): _module,
    ("cloudpickle.cloudpickle", "_builtin_type"): _builtin_type,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class PlainUnpickler(Unpickler):
    """Builds traces of data and of the hosted model. Raises NotMergeable for any other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        where = (module, name)
        if where in _INSTEAD:
            return _INSTEAD[where]
        if where in allowed.FUNCTIONS:
            return allowed.FUNCTIONS[where]
        if where in _TRACE or where in _VALUES:
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise NotMergeable(f"{module}.{name}")
