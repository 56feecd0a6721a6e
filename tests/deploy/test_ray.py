"""The Ray that `interlace up` starts: it executes code for whoever has its token, and hardly a port of it can be
reached from elsewhere."""

import contextlib
import http.client
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import running

_ASK = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).internal_kv_keys(b'', timeout=20)"
_JOB = '{"entrypoint": "id"}'
Until = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True)
class Part:
    """A process of the server, as others see it."""

    words: str
    environ: str
    #: Where it listens.
    addresses: frozenset[str]
    ports: frozenset[int]


def parts_of(pid: int) -> Iterator[Part]:
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            listens = [each.laddr for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
            yield Part(
                " ".join(process.cmdline()),
                str(process.environ()),
                frozenset(at.ip for at in listens),
                frozenset(at.port for at in listens),
            )


@pytest.fixture
def server(home: Path, tiny_models: Path) -> Iterator[running.Running]:
    configuration = {"runtime": "ray", "models": [{"source": str(tiny_models)}]}
    # What is set outside is another Ray's.
    outside = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "outside"}
    with running.interlace(home, configuration, seconds=400, environ=outside) as interlace:
        yield interlace


def asks(address: str, **environ: str) -> int:
    """The exit code of a stranger who asks Ray's control service for its keys."""
    command = [sys.executable, "-c", _ASK, address]
    return subprocess.run(command, env=os.environ | environ, capture_output=True, timeout=120, check=False).returncode


def posts_a_job(port: int) -> int:
    """What the job API of that port answers; 0 where it does not speak HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/api/job_agent/jobs/", _JOB, {"Content-Type": "application/json"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def with_a_job_api(pid: int) -> list[Part]:
    """All parts, as soon as one of them has a job API, and asks for a token; none before."""
    parts = list(parts_of(pid))
    return parts if any(posts_a_job(port) == 401 for part in parts for port in part.ports) else []


def test_only_who_has_the_token_may_use_it(server: running.Running, until: Until) -> None:
    token = server.state_dir / "run" / "ray_token"
    assert token.stat().st_mode & 0o777 == 0o600
    parts = until(lambda: with_a_job_api(server.process.pid))
    [address] = {found[1] for part in parts if (found := re.search(r"--gcs-address=(\S+)", part.words))}
    assert asks(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)) == 0
    assert asks(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="wrong") != 0
    assert asks(address, RAY_AUTH_MODE="disabled") != 0

    elsewhere = [part.words for part in parts if not part.addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}]
    assert all(words.startswith("ray::ServeReplica") for words in elsewhere)  # Serve has no setting for that one
    answers = [posts_a_job(port) for part in parts for port in part.ports]
    assert not any(200 <= answer < 300 for answer in answers)
    assert [part.words for part in parts if token.read_text() in part.words + part.environ] == []
