"""The process that holds one model's weights and forks a child for each job.

It has one thread, no secret and no network peer: children inherit its memory. Started as
``python -m interlace_workers.zygote CHANNEL_FD LOAD_JSON``; it ends when the channel does.
"""

import gc
import json
import os
import select
import socket
import sys
import time
from dataclasses import asdict

from interlace_workers import channel, sandbox
from interlace_workers.child import job
from interlace_workers.child.model import HostedModel, load
from interlace_workers.child.warm import warm_up
from interlace_workers.order import Load, Loaded


class Zygote:
    """Forks on demand, reaps what ended, tells the parent of both."""

    def __init__(self, parent: socket.socket, model: HostedModel) -> None:
        self._parent = parent
        self._model = model
        self._children: dict[int, int] = {}  # pidfd -> pid
        self._poll = select.poll()
        self._poll.register(parent, select.POLLIN)

    def serve(self) -> None:
        """Fork for each request of the parent until it is gone."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._children:
                    self._reap(fd)
                    continue
                try:
                    channel.receive(self._parent)
                except EOFError:
                    return
                self._fork()

    def _fork(self) -> None:
        ours, theirs = channel.pair()
        me = os.getpid()
        pid = os.fork()
        if pid == 0:
            end = theirs.detach()
            sandbox.enter(parent=me, keep=end)
            job.main(socket.socket(fileno=end), self._model)
        theirs.close()
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        channel.send(self._parent, {"forked": pid}, [ours.fileno(), pidfd])
        ours.close()

    def _reap(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        pid = self._children.pop(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        channel.send(self._parent, {"exited": pid, "code": code, "cpu_seconds": usage.ru_utime + usage.ru_stime})


def main() -> None:
    parent = socket.socket(fileno=int(sys.argv[1]))
    order = Load(**json.loads(sys.argv[2]))
    started = time.monotonic()
    try:
        model = load(order)
        warm_up(model.model)
    except Exception as error:  # noqa: BLE001 - whatever the loader raises is the reason that the parent shows
        channel.send(parent, {"failed": f"{type(error).__name__}: {error}"[:8000]})
        sys.exit(1)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        channel.send(parent, {"failed": f"the zygote has {threads} threads after loading; a fork needs one"})
        sys.exit(1)
    gc.collect()
    gc.freeze()
    loaded = Loaded(
        n_params=model.n_params,
        size_bytes=model.size_bytes,
        seconds=time.monotonic() - started,
        python_version=sys.version,
        packages=model.packages,
    )
    channel.send(parent, {"loaded": asdict(loaded)})
    Zygote(parent, model).serve()


if __name__ == "__main__":
    main()
