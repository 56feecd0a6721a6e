"""A traced block as bytes. As nnsight serializes it, but for the parts of the model that are as they were built."""

import io
from typing import Any

import zstandard
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.serialization import DEFAULT_PROTOCOL, CustomCloudPickler, reduce_block
from nnsight.ndif import pull_env

_LEVEL = 3
#: What an envoy has from its construction on, beside its children.
_OWN = frozenset(
    "_parent _module path interleaver _edits _rename _aliases _envoys _children _child_map".split()  # noqa: SIM905
)


def serialize(tracer: Any, compress: bool) -> bytes:
    """The execution payload of a request.

    nnsight sends its whole tree of envoys each time, 56 kB and 9 ms for a model of 30 layers. An envoy that nobody has
    touched is what the server's model has at the same path, and is sent as that path.
    """
    pull_env()
    frame = tracer.info.frame
    block = reduce_block(tracer.node, frame.f_globals, dict(frame.f_locals))
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=DEFAULT_PROTOCOL).dump((tracer, block))
    data = buffer.getvalue()
    return bytes(zstandard.ZstdCompressor(level=_LEVEL).compress(data)) if compress else data


class _Pickler(CustomCloudPickler):  # type: ignore[misc]
    """nnsight's pickler, which asks 10,000 times about such a model."""

    def __init__(self, file: Any, protocol: int) -> None:
        super().__init__(file, protocol=protocol)
        #: By id: whether an envoy and all below it are as they were built.
        self._plain: dict[int, bool] = {}

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is Envoy and self._is_plain(obj):
            return f"Envoy:{obj.path}"
        own = getattr(obj, "__dict__", None)
        try:
            return None if own is None else own.get("_persistent_id")
        except (AttributeError, TypeError):  # a class may call anything its `__dict__`
            return None

    def _is_plain(self, envoy: Envoy) -> bool:
        known = self._plain.get(id(envoy))
        if known is None:
            self._plain[id(envoy)] = False  # where it is below itself
            known = self._plain[id(envoy)] = self._looks_plain(envoy)
        return known

    def _looks_plain(self, envoy: Envoy) -> bool:
        own = envoy.__dict__
        if type(envoy) is not Envoy or own["_edits"] or own["_rename"] or own["_aliases"] or own["_envoys"]:
            return False
        children = own["_child_map"]
        if any(children.get(name) is not value for name, value in own.items() if name not in _OWN):
            return False
        if [*dict.fromkeys(children.values())] != own["_children"]:
            return False
        return all(map(self._is_plain, own["_children"]))
