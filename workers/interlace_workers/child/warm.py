"""Do ahead what every first trace of a process pays for: imports in the zygote, page faults in each waiting child.

A rehearsal is a small trace of the model, serialized as a client would. The zygote makes one and runs it; each child
runs it again while it waits for its job, without the multiplications by weights, which cost most and leave nothing
behind that the job could use.
"""

import linecache
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel
from nnsight.tracing.globals import BLOCKS, SOURCES
from torch.nn import functional

from interlace_workers import heap
from interlace_workers.child import trace
from interlace_workers.child.loading import inputs, pipeline
from interlace_workers.child.loading.model import HostedModel
from interlace_workers.child.writing import output as results
from interlace_workers.child.writing import packing
from interlace_workers.order import Order

_RESULT_BYTES = 1 << 20  # more than that of a rehearsal
_AHEAD = 8 << 20  # bytes: what products by weights are packed into, 6 MiB of MKL's, and the logits of a few tokens
_PIPE = 32 << 10  # bytes that a pipe takes without a reader
_FEW = 4_000  # numbers of a result as a minimal trace has them


def make_room() -> None:
    """Have memory at hand for a small forward: half of the faults of a minimal trace are for it."""
    heap.take_ahead(_AHEAD)


def rehearsal(model: HostedModel) -> bytes:
    """The payload of a small trace; empty for a model that takes no such input, which is left cold."""
    with _forgotten(model) as failures:
        if not model.is_pipeline:
            inputs.preprocess(model.model)
    for arguments, keywords in pipeline.smallest(model.model) if model.is_pipeline else inputs.smallest(model.model):
        backend = _Serialize()
        with _forgotten(model) as failed:
            with model.model.trace(*arguments, **keywords, backend=backend):
                output = model.model.output.save()  # noqa: F841 - saved under its name
            # A picture or a sound may be thousands of tokens, and a text encoder alone have ten billion weights.
            with nullcontext() if isinstance(arguments[0], torch.Tensor) else _dry():
                _rehearse(model, backend.payload)
            return backend.payload
        failures += failed
    print("not warmed up:", *failures, sep="\n  ", file=sys.stderr)
    return b""


def rehearse(model: HostedModel, payload: bytes, is_over: Callable[[], bool]) -> None:
    """Run a rehearsal as a job is run, from the payload to the serialized result, without the weights.

    It ends at the next layer once ``is_over`` says so.
    """
    if not payload:
        return
    with _forgotten(model) as failures, _dry(is_over):
        _rehearse(model, _through_descriptors(payload))
    for failure in failures:
        print("not warm:", failure, file=sys.stderr)


def _rehearse(model: HostedModel, payload: bytes) -> None:
    tracer = RequestModel.deserialize(payload, model.persistent, compress=False, unpickler=trace.Unpickler)
    results.rehearse(trace.run(model, tracer))


def _through_descriptors(payload: bytes) -> bytes:
    """The payload as it comes out of the way on which a job's own comes in; a result goes out, to nowhere."""
    order = Order(compress=True, unpacked_bytes=len(payload), result_bytes=_RESULT_BYTES)
    results.write({"output": torch.zeros(_FEW)}, os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), order)
    packed = packing.small(payload)
    if len(packed) > _PIPE:
        return payload
    reader, writer = os.pipe()
    with open(writer, "wb") as file:
        file.write(packed)
    return trace.unpacked(reader, order)


class _Serialize(RemoteBackend):  # type: ignore[misc]
    """Keeps a trace's payload in place of sending it."""

    def __init__(self) -> None:
        super().__init__("", host="http://rehearsal.invalid")
        self.payload = b""

    def __call__(self, tracer: Any = None) -> None:
        self.payload = RequestModel.serialize(tracer)


class _Over(Exception):
    """A rehearsal has taken long enough."""


@contextmanager
def _dry(is_over: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Layers take one number of each row of their weights: shapes, and what autograd keeps, are as ever.

    The first of them after ``is_over`` raises _Over.
    """
    linear, addmm, conv2d = functional.linear, torch.addmm, functional.conv2d

    def go_on() -> None:
        if is_over():
            raise _Over

    def short_linear(values: Any, weight: Any, bias: Any = None) -> Any:
        go_on()
        return linear(values[..., :1], weight.reshape(-1)[: weight.shape[0], None], bias)

    def short_addmm(bias: Any, values: Any, weight: Any, **how: Any) -> Any:  # a Conv1D of GPT-2
        go_on()
        return addmm(bias, values[..., :1], weight.reshape(-1)[None, : weight.shape[1]], **how)

    def short_conv2d(values: Any, weight: Any, bias: Any = None, *how: Any, **more: Any) -> Any:
        go_on()
        if weight.shape[1] == values.shape[-3]:  # not in groups
            values, weight = values[..., :1, :, :], weight[:, :1]
        return conv2d(values, weight, bias, *how, **more)

    functional.linear, torch.addmm, functional.conv2d = short_linear, short_addmm, short_conv2d  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.linear, torch.addmm, functional.conv2d = linear, addmm, conv2d


@contextmanager
def _forgotten(model: HostedModel) -> Iterator[list[str]]:
    """Leave nothing of what runs in the block; its failure, which is no one else's, ends it and goes into the list."""
    failures: list[str] = []
    try:
        with pipeline.kept(model.model) if model.is_pipeline else nullcontext():
            yield failures
    except _Over:
        pass
    except Exception as error:  # noqa: BLE001 - any model may refuse such an input in its own way
        failures.append(f"{type(error).__name__}: {error}")
    finally:
        model.model.interleaver.cancel()
        SOURCES.clear()
        BLOCKS.clear()
        linecache.clearcache()
