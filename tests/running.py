"""A whole Interlace, started by its own command and stopped with Ctrl-C."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from interlace_deploy.parts import tether

_STOP = 120.0  # seconds
#: What hosts the models of `families_server` and the pipelines. RUNTIME=ray in the environment has one of each run
#: through Ray Serve, by hand: pytest tests/journeys/test_{mamba,encoders_and_seq2seq,vision,diffusion}.py -k "mini"
RUNTIME = os.environ.get("RUNTIME", "process")


@dataclass
class Running:
    """An `interlace up` that said that it is ready."""

    url: str
    process: "subprocess.Popen[str]"
    state_dir: Path
    lines: list[str] = field(default_factory=list)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold a replica each, of all models; of `runtime: process`."""
        found = []
        for one in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                if "interlace_workers.runtimes.replica_process" in " ".join(one.cmdline()[:4]):
                    found.append(one)
        return found

    def logs(self) -> str:
        """The ends of all its log files."""
        files = sorted((self.state_dir / "logs").glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-4000:]}" for file in files)


@contextmanager
def interlace(
    home: Path,
    configuration: Mapping[str, Any],
    *,
    seconds: float,
    environ: Mapping[str, str] | None = None,
    state_dir: Path | None = None,
) -> Iterator[Running]:
    """Start, wait for the `ready` line for at most ``seconds``, stop with Ctrl-C at the end.

    ``state_dir`` is that of a former one, which goes on.
    """
    state_dir = state_dir or Path(tempfile.mkdtemp(prefix="s", dir=home))
    file = state_dir / "interlace.yaml"
    file.write_text(json.dumps({"state_dir": str(state_dir), "gateway": {"port": 0}, **configuration}))
    command = [sys.executable, "-m", "interlace_deploy", "up", "--config", str(file)]
    process = subprocess.Popen(
        # Tied to us, so that nothing is left of it where the tests are killed.
        [sys.executable, "-IS", tether.__file__, str(os.getpid()), str(int(signal.SIGTERM)), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(environ or {})},
        cwd=state_dir,  # elsewhere: what the tests can import, it cannot
        start_new_session=True,
    )
    running = Running("", process, state_dir)
    try:
        running.url = _ready(running, seconds)
        yield running
    finally:
        _stop(running)


def _ready(running: Running, seconds: float) -> str:
    """The URL of the `ready` line. Fails with all that was printed."""
    said: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(running, said), daemon=True).start()
    deadline = time.monotonic() + seconds
    while True:
        try:
            line = said.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            line = None
        if line is None:
            what = f"not ready in {seconds:.0f} s" if running.process.poll() is None else "ended before it was ready"
            raise AssertionError("\n".join([what, *running.lines, running.logs()]))
        if line.startswith("ready http://"):
            return line.removeprefix("ready ").strip()


def _read(running: Running, said: "queue.Queue[str | None]") -> None:
    assert running.process.stdout is not None
    for line in running.process.stdout:
        running.lines.append(line.rstrip("\n"))
        said.put(line)
    said.put(None)


def _stop(running: Running) -> None:
    running.interrupt()
    try:
        running.process.wait(_STOP)
    except subprocess.TimeoutExpired:
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
        raise AssertionError("\n".join(["did not stop on Ctrl-C", *running.lines, running.logs()])) from None
