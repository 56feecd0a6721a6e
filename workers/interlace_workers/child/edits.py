"""What a request's artifacts are in its child: additions to what modules give, or values that its block reads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from interlace import _opened
from interlace.methods.shared import edits as _edits
from interlace_workers.child.loading.model import HostedModel
from interlace_workers.child.opened import of_use, opened
from interlace_workers.order import Order


@contextmanager
def attached(model: HostedModel, order: Order, fds: Sequence[int]) -> Iterator[None]:
    """Have the order's edits on in the block. Raises InvalidArtifact."""
    edits = [opened(adapter, fd) for adapter, fd in of_use(order, fds, "edit")]
    if not edits:
        yield
        return
    with _edits.attached(model.model, edits):
        yield


@contextmanager
def at_hand(order: Order, fds: Sequence[int]) -> Iterator[None]:
    """Have the order's other artifacts where a traced block finds them."""
    try:
        for adapter, fd in of_use(order, fds, "input"):
            _opened.put(opened(adapter, fd))
        yield
    finally:
        _opened.clear()
