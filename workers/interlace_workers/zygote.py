"""The process that holds one model's weights and forks a child for each job.

It has one thread, no secret and no network peer: children inherit its memory. Started by `spawn`; it ends when the
channel does.
"""

import contextlib
import gc
import itertools
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NoReturn

from interlace.methods import BrokenCatalogue, catalogue
from interlace_workers import channel, heap
from interlace_workers.child import job, resident, trace, warm
from interlace_workers.child.loading import quantized, speed
from interlace_workers.child.loading.model import HostedModel, load
from interlace_workers.order import Loaded
from interlace_workers.reserve import Reserve
from interlace_workers.sandbox import Sandbox, Unsafe, process
from interlace_workers.sandbox.process import Family
from interlace_workers.weights import into_huge_pages

_LONGEST_REASON = 2000  # characters
_MISMATCHED = "You set `ignore_mismatched_sizes` to `False`"
_OF_OTHER_SHAPES = (
    "The weights are not of the shapes that its config.json says (mismatched sizes). The workers' log lists them; is "
    "this the configuration that belongs to them?"
)
_RAISED = re.compile(r"^[\w.]*(?:Error|Exception): ", re.MULTILINE)


class Zygote:
    """Forks on demand, reaps what ended, tells whoever asked of both.

    One parent has started it; that one may bring others, replicas of the same model on the same machine, which then
    share its weights. It ends when the last of them is gone.
    """

    def __init__(self, parent: socket.socket, model: HostedModel, sandbox: Sandbox, family: Family, about: int) -> None:
        """``about``: a descriptor of /proc/self."""
        self._about = about
        self._model = model
        self._sandbox = sandbox
        self._family = family
        self._parents: dict[int, socket.socket] = {}
        self._children: dict[int, tuple[int, int, socket.socket]] = {}  # pidfd -> pid, slot, whose it is
        self._is_settled = False
        self._poll = select.poll()
        self._adopted_by(parent)

    def serve(self) -> None:
        """Fork for each request until no parent is left, then end what is left."""
        while self._parents:
            for fd, _ in self._poll.poll():
                if fd in self._children:
                    self._reap(fd)
                elif fd in self._parents:
                    self._heed(self._parents[fd])
        self._family.kill()

    def _adopted_by(self, parent: socket.socket) -> None:
        self._parents[parent.fileno()] = parent
        self._poll.register(parent, select.POLLIN)

    def _heed(self, parent: socket.socket) -> None:
        """One message of a parent, or its end."""
        try:
            message, fds = channel.receive(parent)
        except EOFError:
            self._left_by(parent)
            return
        if "share" in message:
            (fd,) = fds
            other = socket.socket(fileno=fd)
            self._adopted_by(other)
            self._tell(other, {"loaded": message["share"]})
        elif "settle" in message:
            self._settle()
        else:
            self._fork(parent)

    def _settle(self) -> None:
        """Do what makes every later fork and job cheaper and takes a second, once nobody waits for the model.

        Not beside a child: memory that it shares would become its own, and count as its job's.
        """
        if self._is_settled or self._children:
            return
        self._is_settled = True
        _know_methods()
        gc.collect()
        heap.gather(self._about)
        gc.freeze()

    def _left_by(self, parent: socket.socket) -> None:
        """A parent has gone: its children end, those of others go on."""
        self._poll.unregister(parent)
        del self._parents[parent.fileno()]
        for pidfd, (_, _, whose) in self._children.items():
            if whose is parent:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        parent.close()

    def _fork(self, parent: socket.socket) -> None:
        """Fork a child, or say why there is none: what runs here already goes on, and so does the model."""
        try:
            ours, theirs = channel.pair()
        except OSError as error:
            self._tell(parent, {"refused": str(error)})
            return
        with ours:
            taken = {slot for _, slot, _ in self._children.values()}
            slot = next(number for number in itertools.count() if number not in taken)
            with theirs:
                try:
                    pid = self._sandbox.fork()
                except OSError as error:
                    self._tell(parent, {"refused": str(error)})
                    return
                if pid == 0:
                    job.main(theirs, self._model, self._sandbox, slot)
            try:
                pidfd = os.pidfd_open(pid)
            except OSError as error:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self._tell(parent, {"refused": str(error)})
                return
            self._children[pidfd] = pid, slot, parent
            self._poll.register(pidfd, select.POLLIN)
            try:
                channel.send(parent, {"forked": pid}, [ours.fileno(), pidfd])
            except OSError as error:  # the child ends with its channel
                self._tell(parent, {"refused": str(error)})

    def _reap(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        pid, _, parent = self._children.pop(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        # What the child left running has become ours.
        self._family.kill(but=[pid for pid, _, _ in self._children.values()])
        cpu_seconds = usage.ru_utime + usage.ru_stime
        peak_bytes = usage.ru_maxrss << 10
        code = os.waitstatus_to_exitcode(status)
        self._tell(parent, {"exited": pid, "code": code, "cpu_seconds": cpu_seconds, "peak_bytes": peak_bytes})

    def _tell(self, parent: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        # A parent that is gone shows at the next poll.
        with contextlib.suppress(OSError):
            channel.send(parent, message, fds)


def _reason(error: Exception) -> str:
    """The sentence that matters: a pipeline of transformers wraps a traceback of each class that it tried to load."""
    if isinstance(error, Unsafe):
        return str(error)
    text = f"{type(error).__name__}: {error}"
    first = _RAISED.search(text, pos=max(0, text.find("\nTraceback")))
    reason = text if first is None else text[first.start() :].split("\n\n", 1)[0]
    if _MISMATCHED in reason:  # transformers goes on with "For details look at the above report!"
        return _OF_OTHER_SHAPES
    return reason.strip()[:_LONGEST_REASON]


def main(reserve: Reserve) -> None:
    """``reserve``: what was begun before the imports; it hears which model this is about."""
    gc.freeze()  # imports leave little behind, and have made 400,000 objects that a collection would walk
    parent = reserve.parent
    process.adopt_orphans()
    about = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # behind the sandbox there is none
    started, waiting = _started(), _now()
    if (order := reserve.load()) is None:  # no model needs us
        return
    started += _now() - waiting
    try:
        trace.hasten()
        quantized.enable(order)
        model = load(order)
        if order.resident:
            warm.rehearsal(model)
            _know_methods()
            _stay(parent, model, _now() - started)
        into_huge_pages(model.model._module, reserve.end(), realign=not order.is_pipeline)
        model = replace(model, rehearsal=warm.rehearsal(model))
        token_seconds = speed.token_seconds(model)
        _refuse_threads()
        family, sandbox = Family(), Sandbox(order.isolation, hidden=order.path, without=order.without)
        sandbox.prepare()
    except Exception as error:  # noqa: BLE001 - whatever the loader raises is the reason that the parent shows
        channel.send(parent, {"failed": _reason(error)})
        sys.exit(1)
    gc.collect()
    heap.fill()
    heap.extend()
    gc.freeze()
    gc.enable()
    took = _now() - started
    loaded = Loaded(model.n_params, model.size_bytes, token_seconds, sandbox.layers, sandbox.missing, took)
    with contextlib.suppress(BrokenPipeError):  # a parent that is gone shows at the first poll
        channel.send(parent, {"loaded": asdict(loaded)})
    Zygote(parent, model, sandbox, family, about).serve()


def _know_methods() -> None:
    """Read the declarations of all methods, so that no job has to; one that is wrong is for the jobs to tell."""
    with contextlib.suppress(BrokenCatalogue):
        catalogue()


def _now() -> float:
    """Seconds on the kernel's clock of when processes were started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _started() -> float:
    """When this process was, before its imports; behind the sandbox that cannot be read any more."""
    with open("/proc/self/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def _stay(parent: socket.socket, model: HostedModel, took: float) -> NoReturn:
    """Run jobs here, without a fork and without a sandbox."""
    gc.enable()
    missing = {"every layer": "the model is resident: its jobs run in its own process"}
    loaded = Loaded(model.n_params, model.size_bytes, missing=missing, seconds=took)
    with contextlib.suppress(BrokenPipeError):
        channel.send(parent, {"loaded": asdict(loaded)})
    resident.serve(parent, model)


def _refuse_threads() -> None:
    """Raises RuntimeError where loading has started threads: a fork would leave their locks held."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"the zygote has {threads} threads after loading; a fork needs one")
