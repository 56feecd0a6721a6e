"""The way of values that leave before the job's end: into the file of values, and a frame that says where they lie."""

import io
import os
import threading
from functools import cached_property
from typing import Any, BinaryIO
from weakref import WeakKeyDictionary

import torch
from greenlet import getcurrent, greenlet

from interlace.protocol import frames
from interlace.protocol.errors import LimitExceeded, UnsendableValue
from interlace.protocol.frames import FrameKind, Value
from interlace_workers.child.writing import output
from interlace_workers.order import Order

#: A tensor of so many bytes is written out once, not piece by piece: it takes half the time.
_SMALL = 1 << 20


class Outlet:
    """Sends values to the parent, as many and as large as the order lets it."""

    def __init__(self, values: int, events: int, order: Order) -> None:
        """``values`` and ``events`` are descriptors, which stay open."""
        self._values = values
        self._events = events
        self._most_bytes, self._most = order.result_bytes, order.streamed_values
        #: Where the next value goes.
        self._end = 0
        self._sent = 0
        self._lock = threading.Lock()
        self._offered = order.offered_bytes
        self._asked = order.offered_bytes >= order.result_bytes
        #: The step that a worker's block is at.
        self.steps: WeakKeyDictionary[greenlet, int] = WeakKeyDictionary()

    @cached_property
    def _file(self) -> BinaryIO:
        return open(self._values, "wb", closefd=False)

    @property
    def offers(self) -> bool:
        """Whether `offer` may still send something."""
        return self._offered > 0

    def stream(self, name: str, value: Any) -> None:
        """Send what user code streams. Raises ValueError, LimitExceeded, UnsendableValue."""
        with self._lock:
            self._send(name, value, self.steps.get(getcurrent()))

    def offer(self, name: str, value: Any, step: int | None) -> None:
        """Send what user code saved, if there is room for it and it can be sent; the result has it in any case."""
        with self._lock:
            before = self._end
            try:
                if _bytes_of(value) > self._offered:
                    raise LimitExceeded("What streams", self._offered, "bytes", "limits.result_bytes")
                self._send(name, value, step)
            except LimitExceeded as error:
                self._offered = 0
                if self._asked:
                    print(f"[nothing that is saved streams any more; the result has it] {error}")
            except (UnsendableValue, ValueError):
                return
            self._offered = max(0, self._offered - (self._end - before))

    def _send(self, name: str, value: Any, step: int | None) -> None:
        if self._sent >= self._most:
            raise LimitExceeded("The number of streamed values", self._most, "values", "limits.streamed_values")
        Value(name, step, self._end, 0).encode()  # a name that is none is found before there is work
        self._file.seek(self._end)
        tail = _Tail(self._file, self._most_bytes - self._end)
        whole = io.BytesIO() if 0 < _bytes_of(value) <= _SMALL else None
        try:
            output.dump(value, tail if whole is None else whole)
        except Exception as error:  # noqa: BLE001 - an object of the user's may refuse in its own way
            raise UnsendableValue(name, type(value).__name__, str(error)) from None
        if whole is not None:
            tail.write(whole.getbuffer())
        if tail.size > self._most_bytes - self._end:
            what = f"What streams ({self._end + tail.size:,} bytes)"
            raise LimitExceeded(what, self._most_bytes, "bytes", "limits.result_bytes")
        self._file.flush()
        # Shorter than what a pipe takes whole.
        os.write(self._events, frames.encode(FrameKind.VALUE, Value(name, step, self._end, tail.size).encode()))
        self._end += tail.size
        self._sent += 1


class _Tail:
    """The end of a file: takes so many bytes, and counts those that are too many. torch bears no refusal."""

    def __init__(self, file: Any, most: int) -> None:
        self._file = file
        self._most = most
        self.size = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.size += size
        if self.size <= self._most:
            self._file.write(data)
        return size

    def flush(self) -> None:
        pass


def _bytes_of(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0
