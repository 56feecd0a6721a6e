"""Jobs of trusted tenants, run one after another in the process that holds the model: nothing protects it from them.

For models that cannot be shared with a fork, as on a GPU. After each job what nnsight and torch keep is put back, and
the process ends, to be replaced, if the model is not what it was. What else a job changes in Python stays changed.
"""

import gc
import linecache
import os
import random
import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import zip_longest
from socket import socket
from typing import Any, NoReturn

import numpy
import torch
from nnsight.tracing.globals import BLOCKS, SOURCES

from interlace_workers import channel
from interlace_workers.child import adapter, job, trace
from interlace_workers.child.loading import pipeline
from interlace_workers.child.loading.model import HostedModel
from interlace_workers.order import Order

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: Bytes of the device that torch may keep for the next job, which saves it the asking.
_HOARDED = 2 << 30
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def serve(parent: socket, model: HostedModel) -> NoReturn:
    """Take one job at a time from ``parent``, as a zygote takes forks, until it is gone or the model is spoiled."""
    outputs = [os.dup(1), os.dup(2)]
    torch.set_num_threads(model.threads)
    before, attention = Likeness.of(model), getattr(model.model, "attn_implementation", None)
    gc.collect()
    gc.freeze()  # what is there now is no job's garbage, and need not be walked after each
    while True:
        ours, theirs = channel.pair()
        try:
            channel.receive(parent)  # the only request there is
            pidfd = os.pidfd_open(os.getpid())
            channel.send(parent, {"forked": os.getpid()}, [ours.fileno(), pidfd])
        except (EOFError, OSError):
            os._exit(0)
        ours.close()
        os.close(pidfd)
        _run(theirs, model)
        theirs.close()
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        _reset(model, attention)
        if changed := before.unlike(Likeness.of(model)):
            print(f"a job has changed the model ({changed}); the process ends", file=sys.stderr, flush=True)
            os._exit(1)


def _run(end: socket, model: HostedModel) -> None:
    """One order; returns without one if its sender is gone."""
    with open("/proc/self/smaps_rollup") as memory:
        channel.send(end, {"memory": True}, [memory.fileno()])
    job.say(end, "sealed")
    try:
        message, fds = channel.receive(end)
    except EOFError:
        return
    given = {fd: os.fstat(fd) for fd in fds}
    payload, result, events, logs, values, *more = fds
    seed = int.from_bytes(os.urandom(8), "big")
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    trace.keep_inside()
    job.listen_to(logs)
    job.print_to_outputs()
    with adapter.taken_out(model.model), pipeline.kept(model.model) if model.is_pipeline else nullcontext():
        job.perform(model, Order.of_message(message), payload, result, events, values, more)
    _close(given)


def _close(given: dict[int, os.stat_result]) -> None:
    """Close what came with an order, wherever it ended; what is closed may have left its number to the job's own."""
    for fd, file in given.items():
        with suppress(OSError):
            if os.path.samestat(os.fstat(fd), file):
                os.close(fd)


def _reset(model: HostedModel, attention: str | None) -> None:
    """Put back what a job may have left in nnsight, in torch and on the device; ``attention`` is the model's own."""
    model.model.interleaver.cancel()
    if attention is not None and model.model.attn_implementation != attention:
        model.model._module.set_attn_implementation(attention)
    for envoy in model.model.modules():
        envoy._edits.clear()
    SOURCES.clear()
    BLOCKS.clear()
    linecache.clearcache()
    model.model._module.zero_grad(set_to_none=True)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(model.threads)
    gc.collect()
    if torch.cuda.is_initialized() and torch.cuda.memory_reserved() - torch.cuda.memory_allocated() > _HOARDED:
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Likeness:
    """What of a model must be the same after a job as before: modules, their hooks, every bit of the weights."""

    modules: tuple[Any, ...]
    tensors: tuple[Any, ...]

    @classmethod
    def of(cls, model: HostedModel) -> "Likeness":
        module = model.model._module
        modules = tuple(
            (name, id(one), one.training, *(_added(getattr(one, hooks)) for hooks in _HOOKS))
            for name, one in module.named_modules()
        )
        named = [*module.named_parameters(), *module.named_buffers()]
        return cls(modules, tuple((name, id(one), one.requires_grad, *_facts(one)) for name, one in named))

    def unlike(self, other: "Likeness") -> str:
        """What has changed, the first of it; "" if nothing has."""
        pairs = (*zip_longest(self.modules, other.modules), *zip_longest(self.tensors, other.tensors))
        return next((f"{one} is now {two}" for one, two in pairs if one != two), "")


def _added(hooks: dict[int, Any]) -> int:
    """How many there are, without those that transformers puts in once to capture attentions and hidden states."""
    return sum(not (getattr(hook, "__module__", None) or "").startswith("transformers.") for hook in hooks.values())


def _facts(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Shape, type, device, and a sum over the bits, which a pass over the memory gives."""
    if tensor.is_meta or not tensor.numel():
        return tuple(tensor.shape), tensor.dtype, tensor.device, 0
    flat = tensor.detach().contiguous().view(-1)
    fits = flat.numel() * flat.element_size() % 8 == 0 and flat.storage_offset() * flat.element_size() % 8 == 0
    bits = flat.view(torch.int64 if fits else _INTEGERS[flat.element_size()])
    return tuple(tensor.shape), tensor.dtype, tensor.device, int(bits.sum(dtype=torch.int64))
