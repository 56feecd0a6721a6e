"""Many jobs' rows in one forward: each block is served its own rows of every value, and nothing of the others'."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from nnsight.intervention.batching import Batcher

_PLAIN = (type(None), bool, float, complex, str, bytes, torch.dtype, torch.device)


class NotMergeable(Exception):
    """The job cannot share a forward; it is run alone. The message says why, for those who look into it."""


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise NotMergeable("a value that is not divided by rows")


_BINARY = "add sub mul matmul truediv floordiv mod pow and or xor lshift rshift divmod"
_OTHERS = (
    "invert lt le eq ne gt ge hash bool int float complex index len iter contains getitem setitem delitem call str "
    "repr format reduce_ex getattr setattr enter copy deepcopy"
)


class _Refusing(type):
    """Gives its class every operation, each of which refuses."""

    def __new__(mcs, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> type:
        binary = _BINARY.split()
        operations = [*binary, *(f"r{one}" for one in binary), *(f"i{one}" for one in binary), "neg", "pos", "abs"]
        operations += _OTHERS.split()
        refused: dict[str, Any] = {f"__{operation}__": _refuse for operation in operations}
        refused |= {"__class__": property(_refuse), "__torch_function__": classmethod(_refuse)}
        return super().__new__(mcs, name, bases, refused | members)


class Foreign(metaclass=_Refusing):
    """Stands where a run alone has a value that cannot be told apart from the others'. Whoever uses it runs alone."""

    __slots__ = ()


_FOREIGN = Foreign()


class Slab(Batcher):  # type: ignore[misc]
    """Divides every value of a forward of ``rows`` rows strictly: a tensor whose first dimension is ``rows`` is the
    jobs' rows in order, anything else that may hold data is `Foreign`.

    So ``rows`` must differ from every other dimension that the model has.
    """

    batching = True

    def __init__(self, envoy: Any, rows: int) -> None:
        super().__init__(envoy)
        self.total = rows
        #: The value that was spliced last, and the groups whose part of it has no history of gradients.
        self._spliced: tuple[Any, frozenset[int]] = (None, frozenset())

    def narrow(self, value: Any, group: list[int]) -> Any:
        """What the job of a group has of a value."""
        if type(value) is torch.Tensor:
            if value.dim() == 0 or value.shape[0] != self.total:
                return _FOREIGN
            rows = value.narrow(0, *group)
            spliced, without = self._spliced
            return rows.detach() if value is spliced and group[0] in without else rows
        if isinstance(value, (list, tuple, dict)):
            return _rebuilt(value, lambda one: self.narrow(one, group))
        if isinstance(value, _PLAIN) or (type(value) is int and value != self.total):
            return value
        return _FOREIGN

    def widen(self, full: Any, group: list[int], edited: Any) -> Any:
        """A value with a job's rows replaced. Raises NotMergeable where they do not take the place of the old ones."""
        if type(full) is torch.Tensor:
            return full if edited is _FOREIGN else self._splice(full, group, edited)
        if isinstance(full, (list, tuple)):
            if type(edited) is not type(full) or len(edited) != len(full):
                _refuse()
            pairs = iter(zip(full, edited, strict=True))
            return _rebuilt(full, lambda _: self.widen(*_swapped(next(pairs), group)))
        if isinstance(full, dict):
            if type(edited) is not type(full) or list(edited) != list(full):
                _refuse()
            new = full.copy()
            for key in full:
                new[key] = self.widen(full[key], group, edited[key])
            return new
        if edited is _FOREIGN or edited is full or (isinstance(full, (*_PLAIN, int)) and edited == full):
            return full
        _refuse()

    def gather_skip(self, running: Any, group: list[int], replacement: Any) -> Any:
        _refuse()

    def _splice(self, full: torch.Tensor, group: list[int], edited: Any) -> torch.Tensor:
        if full.dim() == 0 or full.shape[0] != self.total or type(edited) is not torch.Tensor:
            _refuse()
        rows = full.narrow(0, *group)
        if edited.shape != rows.shape or edited.dtype != rows.dtype or edited.layout != rows.layout:
            _refuse()
        if edited.data_ptr() == rows.data_ptr() and edited.stride() == rows.stride():
            return full  # edited in place
        start, size = group
        new = torch.cat([full[:start], edited, full[start + size :]])
        spliced, without = self._spliced
        without = without if full is spliced else frozenset()
        self._spliced = new, without | {start} if new.requires_grad and not edited.requires_grad else without - {start}
        return new


def _swapped(pair: tuple[Any, Any], group: list[int]) -> tuple[Any, list[int], Any]:
    return pair[0], group, pair[1]


def _rebuilt(container: Any, change: Callable[[Any], Any]) -> Any:
    """A container of the same type with each of its values changed, in order."""
    if isinstance(container, dict):
        new = container.copy()
        for key, value in container.items():
            new[key] = change(value)
        return new
    values = [change(value) for value in container]
    if isinstance(container, tuple) and hasattr(container, "_fields"):
        return type(container)(*values)
    return type(container)(values)
