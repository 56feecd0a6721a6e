"""Start a zygote: a process that imports what models need, and then loads the one that it is told to.

Needs the standard library only, so that a program can start one before its own imports.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from interlace_workers import channel

#: All that a zygote, and so user code, sees of our environment.
_PASSED = (
    *("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"),
)
_FIXED = {
    # A fork needs one thread, and a thread that spins for another's core costs 20 times the forward.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    "NNSIGHT_CONFIG": os.devnull,
    "NDIF_HOST": "http://remote-inside-a-job.invalid",
    "PYTHONUNBUFFERED": "1",
    "PYTHONHASHSEED": "0",
}
#: Before anything is imported: no collector, which would look for 0.5 s at modules that stay; no bitsandbytes, which
#: PEFT imports wherever it finds it (60 MiB, 4 s of the processor), until a model wants it; and no Redis beside user
#: code, which PyTorch's compiler imports where it finds it.
BEFORE = "import gc, sys; gc.disable(); sys.modules.update(bitsandbytes=None, redis=None); "
_RUN = (
    BEFORE + "from interlace_workers.reserve import begun; reserve = begun(sys.argv[1]); "
    "from interlace_workers.zygote import main; main(reserve)"
)


class Spawned:
    """A zygote's process, ours or one that another process has started, and our end of its channel."""

    def __init__(self, pid: int, pidfd: int, end: socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.end = end

    async def wait(self) -> None:
        """Until it has ended."""
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(self.pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self.pidfd)
        with contextlib.suppress(ChildProcessError):  # it is another's to bury
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)

    def terminate(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


def inherited(words: Sequence[str]) -> Spawned | None:
    """The one that our own parent has started for us, if our command line names one: ``--first=PID:END:PIDFD``."""
    for word in words:
        if word.startswith("--first="):
            pid, end, pidfd = map(int, word.removeprefix("--first=").split(":"))
            for fd in (end, pidfd):
                os.set_inheritable(fd, False)
            return Spawned(pid, pidfd, socket.socket(fileno=end))
    return None


def environment() -> dict[str, str]:
    """What a process gets that runs code of others: none of our secrets."""
    return {name: os.environ[name] for name in _PASSED if name in os.environ} | _FIXED


def spawn(prints: int | None = None) -> Spawned:
    """Start one. It ends when our end of its channel does.

    ``prints``: a descriptor for what it prints, which is ours otherwise; it then has a session of its own, too, for a
    terminal's Ctrl-C is not meant for it.
    """
    ours, theirs = channel.pair()
    command = [sys.executable, "-P", "-c", _RUN, str(theirs.fileno())]
    with theirs:
        # Nor does it learn where we run: `multiprocessing` keeps that in its memory, which jobs can read.
        fds, nothing = [theirs.fileno()], subprocess.DEVNULL
        process = subprocess.Popen(
            command,
            env=environment(),
            cwd="/",
            pass_fds=fds,
            stdin=nothing,
            stdout=prints,
            stderr=prints,
            start_new_session=prints is not None,
        )
    process.returncode = 0  # to be buried by `Spawned`, and not looked after by the class that started it
    return Spawned(process.pid, os.pidfd_open(process.pid), ours)
