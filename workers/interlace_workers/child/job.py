"""A child's life: seal itself, rehearse if told to, wait for the order, limit itself, run it, tell how it ended, wait
to be killed."""

import contextlib
import gc
import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

import numpy
import torch

from interlace import receiving
from interlace.protocol import frames
from interlace.protocol.frames import FrameKind
from interlace_workers import channel, steps
from interlace_workers.child import edits, environment, method, progress, trace, warm
from interlace_workers.child.explanation import explain
from interlace_workers.child.loading.model import HostedModel
from interlace_workers.child.merging import merged
from interlace_workers.child.writing import output, packing
from interlace_workers.child.writing.saves import Watch
from interlace_workers.child.writing.values import Outlet
from interlace_workers.order import Order
from interlace_workers.sandbox import Sandbox, limit


def main(end: socket.socket, model: HostedModel, sandbox: Sandbox, slot: int) -> NoReturn:
    """Seal this process, run one order from ``end`` and never return."""
    space = _sealed(end, sandbox, slot)
    # Ahead of its job: threads of its own, memory, and what prints.
    print_to_outputs()
    torch.set_num_threads(model.threads)
    trace.keep_inside()
    warm.make_room()
    _keep_what_is_there()
    # A write over the limit shall be an OSError that names itself, not the end of the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    say(end, "sealed")
    message, fds = _order(end, model)
    end.close()
    if "orders" in message:
        _share(model, [Order.of_message(order) for order in message["orders"]], fds, space)
    order, (payload, result, events, logs, values, *more) = Order.of_message(message), fds
    listen_to(logs)
    limit(space, order.memory_bytes, _most_file_bytes(order), order.cpu_seconds)
    perform(model, order, payload, result, events, values, more)
    _wait_for_the_end()


def _most_file_bytes(order: Order) -> int:
    """Bytes of the longest file that an order may write."""
    most = packing.most_bytes(order.result_bytes)
    if order.method is None:
        return most
    return max(most, order.method.artifact_bytes, 2 * order.method.checkpoint_bytes + (16 << 20))


def perform(
    model: HostedModel, order: Order, payload: int, result: int, events: int, values: int, more: Sequence[int]
) -> None:
    """Run one order, and tell how it went; `listen_to` comes first, and both outputs are closed at the end.

    ``more``: descriptors of the order's artifacts; for a method one for its checkpoints before them.
    """

    def running() -> None:
        if not gc.isenabled():  # `_keep_what_is_there`
            gc.freeze()
            gc.enable()
        _tell(events, FrameKind.RUNNING)

    run = _trace if order.method is None else method.perform
    try:
        # What the job has made is let go of after it has told: to take that down takes a quarter of a millisecond.
        times, _made = run(model, order, payload, result, events, values, more, running)
    except BaseException as error:  # noqa: BLE001 - the edge of user code: whatever it raised is its result
        failure = explain(error, order.memory_bytes)
        _close_logs()
        _tell(events, FrameKind.FAILED, failure.encode("utf-8", "backslashreplace"))
    else:
        _close_logs()
        _tell(events, FrameKind.DONE, steps.encode(times))


def _trace(
    model: HostedModel,
    order: Order,
    payload: int,
    result: int,
    events: int,
    values: int,
    adapters: Sequence[int],
    running: Callable[[], None],
) -> tuple[list[float], object]:
    """Run a trace; the times at which its parts ended, and what it has made."""
    outlet = Outlet(values, events, order)
    times = [time.perf_counter()]
    with Watch(outlet).watching():
        model = environment.prepare(model, order, adapters)
        with edits.attached(model, order, adapters), edits.at_hand(order, adapters):
            tracer = trace.read(model, order, payload)
            times.append(time.perf_counter())
            running()
            with receiving(outlet.stream), progress.telling(events):
                saved = trace.run(model, tracer)
        times.append(time.perf_counter())
        output.write(saved, result, order)
        times.append(time.perf_counter())
    return times, (tracer, saved)


def print_to_outputs() -> None:
    """Have what Python prints go to both outputs line by line, whatever the job before has put there."""
    sys.stdout, sys.stderr = _printer(1), _printer(2)


def listen_to(logs: int) -> None:
    """Make a descriptor, which is closed otherwise, both outputs."""
    os.dup2(logs, 1)
    os.dup2(logs, 2)
    os.close(logs)


def _order(end: socket.socket, model: HostedModel) -> tuple[dict[str, Any], list[int]]:
    """Wait for what to run; rehearse until it comes, if the parent finds that nothing else wants the processor."""
    coming = select.poll()
    coming.register(end, select.POLLIN)
    while True:
        try:
            message, fds = channel.receive(end)
        except EOFError:
            os._exit(0)
        if "rehearse" not in message:
            return message, fds
        warm.rehearse(model, model.rehearsal, lambda: bool(coming.poll(0)))
        _keep_what_is_there()
        if not coming.poll(0):
            warm.make_room()
        say(end, "warm")


def _keep_what_is_there() -> None:
    """Have no collection amid the job walk the tree of modules, the rehearsal's or, while it is read, the job's own.

    And give the child random numbers of its own: it inherited the zygote's, and a rehearsal may have drawn some.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    seed = int.from_bytes(os.urandom(8), "big")
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def _share(model: HostedModel, orders: list[Order], fds: list[int], space: int) -> NoReturn:
    """Run several orders of one tenant's, of which each has four descriptors; those of their adapters come last."""
    memory, size = max(order.memory_bytes for order in orders), max(order.result_bytes for order in orders)
    limit(space, memory, packing.most_bytes(size), max(order.cpu_seconds for order in orders))
    ends = iter(fds)
    members = [merged.Member(order, next(ends), next(ends), next(ends), next(ends)) for order in orders]
    merged.run(model, members, list(ends), _tell)
    _wait_for_the_end()


def _wait_for_the_end() -> NoReturn:
    """The parent kills this process once it has read how its jobs ended: no destructor of user code runs."""
    while True:
        signal.pause()


def _sealed(end: socket.socket, sandbox: Sandbox, slot: int) -> int:
    """Go behind every layer; returns the bytes of the address space before."""
    try:
        memory = sandbox.memory()
        channel.send(end, {"memory": True}, [memory])
        return sandbox.seal(end.fileno(), slot)
    except OSError as error:
        # Where seccomp is on already this fails, too; the parent sees the end of the channel.
        with contextlib.suppress(OSError):
            channel.send(end, {"refused": str(error)})
        os._exit(1)


def say(end: socket.socket, word: str) -> None:
    """Tell the parent, by a call that a sealed process may make."""
    with contextlib.suppress(OSError):  # a parent that is gone shows at the next word from it
        os.write(end.fileno(), json.dumps({word: True}).encode())


def _printer(fd: int) -> TextIO:
    return os.fdopen(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _tell(events: int, kind: FrameKind, body: bytes = b"") -> None:
    data = frames.encode(kind, body)
    while data:
        data = data[os.write(events, data) :]


def _close_logs() -> None:
    """Flush and close both outputs, so that the parent has every line before it learns how the job ended."""
    for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # user code may have put anything there
            stream.flush()
        with contextlib.suppress(OSError):
            os.close(fd)
