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

from interlace_deploy.children import rotate
from interlace_deploy.problems import CommandProblem
from interlace_deploy.rundir import RunDir, Running
from interlace_deploy.screen import Screen
from interlace_deploy.settings import read
from interlace_state.config import Config

_LOOK = 0.05  # seconds between two looks at the log
_KILLED = 10.0  # seconds that a killed service may take to be gone


def up(config: Config, words: Sequence[str], screen: Screen) -> int:
    """Start `interlace up` in the background; return when it is ready, with its exit code if it ends before."""
    RunDir(config.state_dir).refuse_second()
    log = config.state_dir / "logs" / "up.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        rotate(log)
    except OSError as error:
        raise CommandProblem(f"{log.parent}: {error.strerror} (choose another folder: `state_dir`)") from None
    command = [sys.executable, "-m", "interlace_deploy", *(word for word in words if word != "--detach")]
    with log.open("wb") as output:
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
            _stop(handle, running, config.gateway.drain_seconds)
    finally:
        os.close(handle)
    return 0


def _stop(handle: int, running: Running, drain_seconds: float) -> None:
    started = time.monotonic()
    for seconds, how in ((2 * drain_seconds + 40, "stopped"), (_KILLED, "killed, because it did not stop in time")):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        if _ends(handle, seconds):
            where = f" at {running.url}" if running.url else ""
            print(f"Interlace{where} (process {running.pid}) {how} in {time.monotonic() - started:.1f} s.")
            return
    raise CommandProblem(f"Process {running.pid} does not stop. Look at it, or end it with: kill -9 {running.pid}")


def _ends(handle: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


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
                    return 0
                screen.say(line)
            if ended is not None:
                return ended
            time.sleep(_LOOK)
