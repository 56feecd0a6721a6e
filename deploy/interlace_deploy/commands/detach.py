"""`interlace up --detach` and `interlace down`: the same service, in a session of its own."""

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from interlace_deploy.parts.children import rotate
from interlace_deploy.parts.rundir import RunDir, Running
from interlace_deploy.problems import CommandProblem
from interlace_deploy.screen import Screen
from interlace_deploy.settings import read
from interlace_state.config import Config

_LOOK = 0.05  # seconds between two looks at the log
_KILLED = 10.0  # seconds that a killed service may take to be gone


def up(config: Config, words: Sequence[str], screen: Screen) -> int:
    """Start `interlace up` in the background; return when it is ready, with its exit code if it ends before."""
    RunDir(config.state_dir).refuse_second()
    log = _log_of(config)
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        rotate(log)
    except OSError as error:
        raise CommandProblem(f"{log.parent}: {error.strerror} (choose another folder: `state_dir`)") from None
    command = [sys.executable, "-m", "interlace_deploy", *(word for word in words if word != "--detach")]
    with log.open("ab") as output:  # whoever cuts it where it lies makes no hole
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        return _relay(daemon, log, screen)
    except KeyboardInterrupt:
        daemon.terminate()
        daemon.wait()
        raise


def down(arguments: argparse.Namespace) -> int:
    """The command `down`. Raises CommandProblem if what runs does not stop."""
    config = read(arguments.config, os.environ)
    run_dir = RunDir(config.state_dir)
    running = run_dir.running()
    if running is None:
        print(f"Nothing is running (state {config.state_dir}).")
        return 0
    try:
        handle = os.pidfd_open(running.pid)
    except ProcessLookupError:
        print("It has just stopped by itself.")
        return 0
    try:
        # The process id is the record's while the lock is held; the handle cannot become somebody else's.
        if run_dir.running() == running:
            _stop(handle, running, config)
    finally:
        os.close(handle)
    return 0


def _stop(handle: int, running: Running, config: Config) -> None:
    started, screen = time.monotonic(), Screen()
    where = f" at {running.url}" if running.url else ""
    patience = 3 * config.gateway.drain_seconds + 40  # longer than `Service.stop` gives its parts, one after another
    screen.say(f"stopping Interlace{where}: open streams and jobs that run may end, {patience:g} s at most")
    with contextlib.ExitStack() as stack:
        log: BinaryIO | None = None
        with contextlib.suppress(FileNotFoundError):
            log = stack.enter_context(_log_of(config).open("rb"))
            log.seek(0, os.SEEK_END)
        for seconds, how in ((patience, "stopped"), (_KILLED, "killed, because it did not stop in time")):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGTERM)
            if _ends(handle, seconds, log, screen):
                print(f"Interlace{where} (process {running.pid}) {how} in {time.monotonic() - started:.1f} s.")
                return
    raise CommandProblem(f"Process {running.pid} does not stop. Look at it, or end it with: kill -9 {running.pid}")


def _ends(handle: int, seconds: float, log: BinaryIO | None, screen: Screen) -> bool:
    """Whether a process ends in time; meanwhile, what it says in a log that only one in the background writes."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    deadline = time.monotonic() + seconds
    while True:
        ended = bool(poll.poll(_LOOK * 1000))
        for line in log.readlines() if log else ():
            if line.startswith(b" "):  # what it waits for; the rest we say ourselves
                screen.say(line.decode(errors="replace").rstrip("\n"))
        if ended or time.monotonic() > deadline:
            return ended


def _log_of(config: Config) -> Path:
    return config.state_dir / "logs" / "up.log"


def _relay(daemon: subprocess.Popen[bytes], log: Path, screen: Screen) -> int:
    """Show the background process's lines until it is ready or has ended."""
    part = b""
    with log.open("rb") as lines:
        while True:
            ended = daemon.poll()
            while (part := part + lines.readline()).endswith(b"\n"):
                line, part = part.decode(errors="replace").rstrip("\n"), b""
                if line.startswith("ready "):
                    print(line, flush=True)
                    for hint in lines.read().decode(errors="replace").splitlines():
                        screen.say(hint)
                    return 0
                screen.say(line)
            if ended is not None:
                return ended
            time.sleep(_LOOK)
