"""Run a method: read what it is asked, resolve it, run it, write what it gives as JSON. Nothing is unpickled here."""

import importlib.metadata
import json
import platform
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import numpy
import torch

from interlace.methods import find
from interlace.methods.base import Result
from interlace.protocol.errors import InvalidRequest, LimitExceeded
from interlace.protocol.method import LONGEST_RESULT, Outcome, Payload
from interlace_workers.child import edits, environment, progress
from interlace_workers.child.given import Outbox
from interlace_workers.child.loading.model import HostedModel
from interlace_workers.child.report import JobReport
from interlace_workers.child.trace import unpacked
from interlace_workers.order import Order

#: Sent by the parent: somebody has cancelled.
STOP = signal.SIGUSR1
_LIBRARIES = ("interlace", "torch", "transformers", "nnsight", "peft", "safetensors", "numpy")


def perform(
    model: HostedModel,
    order: Order,
    payload: int,
    result: int,
    events: int,
    artifacts: int,
    more: Sequence[int],
    running: Callable[[], None],
) -> tuple[list[float], object]:
    """Run one order; the times at which its parts ended, and what it has made.

    ``more``: a descriptor for checkpoints, then those of the order's artifacts. ``running`` is called when it starts.
    Raises whatever the method raises.
    """
    times = [time.perf_counter()]
    assert order.method is not None
    checkpoints, *sealed = more
    model = environment.prepare(model, order, sealed)
    asked = Payload.model_validate_json(unpacked(payload, order))
    spec = find(asked.method)
    params = spec.params.model_validate(asked.params)
    run = spec.load()
    outbox = Outbox(artifacts, checkpoints, events, order.method)
    report = JobReport(asked.seed, outbox, list(zip(order.adapters, sealed, strict=True)))
    with closing(report), edits.attached(model, order, sealed), _stopped_by_signal(report):
        _seed(asked.seed)
        times.append(time.perf_counter())
        running()
        with progress.telling(events):
            found = run(model.model, params, report)
    times.append(time.perf_counter())
    if not isinstance(found, spec.result):
        raise InvalidRequest(f"{spec.ref} gave a {type(found).__name__}; expected a {spec.result.__name__}.")
    _write(_outcome(model, found, report), result)
    times.append(time.perf_counter())
    return times, found


def _seed(seed: int) -> None:
    """As `interlace.methods.notebook.run` does."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


@contextmanager
def _stopped_by_signal(report: JobReport) -> Iterator[None]:
    former = signal.signal(STOP, lambda *_: report.stop())
    try:
        yield
    finally:
        # A process that stays may be told too late, and must not end of it.
        signal.signal(STOP, signal.SIG_IGN if former is signal.SIG_DFL else former)


def _outcome(model: HostedModel, found: Result, report: JobReport) -> Outcome:
    parameter = next(model.model._module.parameters())
    return Outcome(
        result=json.loads(found.model_dump_json()),
        forwards=report.forwards,
        backwards=report.backwards,
        tokens=report.tokens,
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
        libraries={"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
        data_sha256=report.data,
        warnings=tuple(report.warnings),
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _write(outcome: Outcome, result: int) -> None:
    """Raises LimitExceeded."""
    data = outcome.model_dump_json().encode()
    if len(data) > LONGEST_RESULT:
        raise LimitExceeded(
            f"The method's result ({len(data):,} bytes as JSON; what is large belongs into artifacts)",
            LONGEST_RESULT,
            "bytes",
            "none: it is fixed",
        )
    with open(result, "wb") as file:
        file.write(data)
