"""Edits of a request: additions to what modules give, on for as long as its job runs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

from interlace_workers.child.model import HostedModel
from interlace_workers.child.opened import of_use, opened
from interlace_workers.order import Order


def attached(model: HostedModel, order: Order, fds: Sequence[int]) -> AbstractContextManager[Any]:
    """Have the order's edits on in the block. Raises AdapterRefused."""
    edits = [opened(adapter, fd) for adapter, fd in of_use(order, fds, "edit")]
    if not edits:
        return nullcontext()
    context: AbstractContextManager[Any] = import_module("interlace.methods._edits").attached(model.model, edits)
    return context
