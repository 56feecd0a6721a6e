"""What traces and steps save, as soon as they are over. Watches nnsight from within, in a child that was asked to."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from greenlet import getcurrent, greenlet
from nnsight.intervention.iterator import Iterations
from nnsight.intervention.tracer import InterleavingTracer
from nnsight.tracing import tracer as tracing

from interlace_workers.child.writing.values import Outlet

_Names = Mapping[str, Any]


class Watch:
    """Offers to an outlet what was saved in each inner trace of a session and in each step of a generation.

    That is each value that was saved there and has a name when it is over, and what saved lists gained. Of a step in a
    trace, each value is offered by the step.
    """

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        #: What was saved in each open inner trace, outside of its steps.
        self._traces: list[list[Any]] = []
        #: What was saved in the step that a worker's block is at.
        self._steps: dict[greenlet, list[Any]] = {}
        #: Saved lists by their id, and how many of their items are no news. Held only while something is open.
        self._lists: dict[int, tuple[list[Any], int]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs."""
        mark, leave, indices = tracing.mark, InterleavingTracer.__exit__, Iterations._indices

        def marked(value: Any) -> Any:
            self._saved(value)
            return mark(value)

        def left(tracer: Any, *raised: Any) -> Any:
            # The outermost trace is run without this; what it saved is the result.
            return self._leave(tracer, lambda: leave(tracer, *raised))

        def stepped(iterations: Any) -> Iterator[int]:
            return self._walk(indices(iterations))

        tracing.mark = marked
        InterleavingTracer.__exit__ = left
        Iterations._indices = stepped
        try:
            yield
        finally:
            tracing.mark, InterleavingTracer.__exit__, Iterations._indices = mark, leave, indices

    def _leave(self, tracer: Any, leave: Any) -> Any:
        """Run an inner trace; offer what it saved."""
        if not self._outlet.offers:
            return leave()
        frame: FrameType = tracer.info.frame
        self._traces.append([])
        self._note_lists(frame.f_locals)
        try:
            if over := leave():
                self._offer(frame.f_locals, self._traces[-1], None)
            return over
        finally:
            self._traces.pop()
            self._forget()

    def _walk(self, indices: Iterator[int]) -> Iterator[int]:
        """The steps of a loop; when the next is asked for, one is over, and what it saved is offered."""
        worker, at = getcurrent(), self._outlet.steps
        outer = at.get(worker), self._steps.get(worker)
        try:
            for step in indices:
                at[worker], self._steps[worker] = step, []
                if self._outlet.offers:
                    self._note_lists(_names(sys._getframe(1)))
                yield step
                if self._outlet.offers:
                    self._offer(_names(sys._getframe(1)), self._steps[worker], step)
        finally:
            _put(at, worker, outer[0])
            _put(self._steps, worker, outer[1])
            self._forget()

    def _saved(self, value: Any) -> None:
        open_ = self._steps.get(getcurrent(), self._traces[-1] if self._traces else None)
        if open_ is not None:
            open_.append(value)

    def _note_lists(self, names: _Names) -> None:
        """What is in the saved lists by now is no news."""
        for _, items in _saved_lists(names):
            self._lists.setdefault(id(items), (items, len(items)))

    def _offer(self, names: _Names, saved: list[Any], step: int | None) -> None:
        fresh = {id(value) for value in saved}
        sent = set()
        for name, value in list(names.items()):
            if id(value) in fresh and id(value) not in self._lists:
                self._outlet.offer(name, value, step)
                sent.add(id(value))
        for name, items in _saved_lists(names):
            known = self._lists[id(items)][1] if id(items) in self._lists else len(items)
            for item in items[known:]:
                if id(item) not in sent:
                    self._outlet.offer(name, item, step)
            self._lists[id(items)] = items, len(items)

    def _forget(self) -> None:
        if not self._traces and not self._steps:
            self._lists.clear()


def _saved_lists(names: _Names) -> list[tuple[str, list[Any]]]:
    saves = tracing._saves()
    return [(name, value) for name, value in list(names.items()) if type(value) is list and id(value) in saves]


def _names(frame: FrameType) -> _Names:
    """The names of the block whose loop asks for a step: its own `for`, or nnsight's over a `with` block."""
    if frame.f_code is Iterations.__iter__.__code__ and frame.f_back is not None:
        return frame.f_back.f_locals
    names: _Names = frame.f_locals
    return names["scope"] if frame.f_code is Iterations.execute.__code__ else names


def _put(where: Any, key: Any, value: Any) -> None:
    if value is None:
        where.pop(key, None)
    else:
        where[key] = value
