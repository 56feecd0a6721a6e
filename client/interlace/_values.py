"""Values that leave a traced block before its end: `stream` hands them over, `receiving` takes them where it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

_T = TypeVar("_T")
_Receiver = Callable[[str, Any], object]

#: Inside a job the server's own is the first.
_receivers: tuple[_Receiver, ...] = ()


def stream(name: str, value: _T) -> _T:
    """Hand a value over now, from anywhere in a traced block, any number of times; returns it.

    In a remote job it goes to whoever follows the job, as it is now: a tensor that changes later is not sent again.
    In a local trace it goes to the callbacks of `receiving`, and nowhere without one. In a job it raises ValueError for
    a name of no or over 256 bytes, LimitExceeded over `limits.streamed_values` and `limits.result_bytes`, and
    UnsendableValue.
    """
    if not isinstance(name, str):
        raise TypeError(f"stream(name, value): the name is a {type(name).__name__}, expected text")
    for receive in _receivers:
        receive(name, value)
    return value


@contextmanager
def receiving(callback: _Receiver) -> Iterator[None]:
    """Call ``callback(name, value)`` for all that is streamed in this process while the block runs."""
    global _receivers
    former = _receivers
    _receivers = (*former, callback)
    try:
        yield
    finally:
        _receivers = former
