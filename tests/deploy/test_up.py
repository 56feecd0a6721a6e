"""A whole Interlace, as `interlace up` starts, watches and stops it. Real parts, a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

Interlace = Callable[..., "subprocess.CompletedProcess[str]"]
Until = Callable[[Callable[[], object], float], None]
Alive = Callable[[], list[str]]

pytestmark = pytest.mark.usefixtures("nothing_left")


@contextmanager
def foreground(model: Path, environ: dict[str, str], stderr: Path) -> "Iterator[subprocess.Popen[str]]":
    """`interlace up --runtime process` in a terminal's place."""
    words = [sys.executable, "-m", "interlace_deploy", "up", "--model", str(model), "--runtime", "process"]
    with stderr.open("w") as lines:
        process = subprocess.Popen(
            words, env=environ, stdout=subprocess.PIPE, stderr=lines, text=True, start_new_session=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def ready(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready http://127.0.0.1:"), line
    return line.split()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as response:
            return bool(json.load(response)["ready"])
    except OSError:
        return False


def part(state_dir: Path, module: str) -> psutil.Process:
    """The part that runs this module for this state folder."""
    return next(
        process
        for process in psutil.process_iter(["cmdline"])
        if module in (words := process.info["cmdline"] or []) and any(str(state_dir) in word for word in words)
    )


def test_detached_from_up_to_down(
    interlace: Interlace, tiny_models: Path, state_dir: Path, until: Until, alive: Alive
) -> None:
    done = interlace("up", "--model", tiny_models, "--runtime", "process", "--detach")
    assert done.returncode == 0, done.stderr
    url = done.stdout.removeprefix("ready ").strip()
    assert done.stdout == f"ready {url}\n"
    assert [line.split()[0] for line in done.stderr.splitlines() if not line.startswith(" ")] == [
        "redis",
        "gateway",
        "workers",
    ]

    status = json.loads(interlace("status", "--json").stdout)
    assert (status["url"], status["ready"]) == (url, True)
    [model] = status["models"]
    assert (model["repo_id"], model["state"], len(model["replicas"])) == ("local/own-model", "ready", 1)
    assert model["replicas"][0]["resident_bytes"] > 1 << 20
    lines = interlace("status").stdout.splitlines()
    assert lines[0] == f"Interlace at {url} (process {status['pid']}): ready"
    assert lines[2].split()[:5] == ["local/own-model", "main", "text-generation", "float32", "ready"]

    config = state_dir / "run" / "config.json"
    assert config.stat().st_mode & 0o777 == 0o600
    assert json.loads(config.read_text())["gateway"]["port"] == int(url.rpartition(":")[2])

    for words in (["up"], ["up", "--detach"]):
        second = interlace(*words)
        assert (second.returncode, second.stdout) == (1, "")
        assert f"Interlace runs already at {url} (process {status['pid']}, state {state_dir})" in second.stderr

    # What ends is started again, at the same address.
    gateway = part(state_dir, "interlace_server")
    gateway.kill()
    until(lambda: not answers(url), 20)
    until(lambda: answers(url), 30)

    done = interlace("down")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Interlace at {url} (process {status['pid']}) stopped in ")
    assert alive() == []
    assert interlace("down").stdout == f"Nothing is running (state {state_dir}).\n"
    assert "gateway was ended by SIGKILL; starting it again in 1 s" in (state_dir / "logs" / "up.log").read_text()


def test_ctrl_c_ends_all_in_order(
    tiny_models: Path, environ: dict[str, str], state_dir: Path, tmp_path: Path, alive: Alive
) -> None:
    with foreground(tiny_models, environ, tmp_path / "stderr") as process:
        ready(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
    assert alive() == []
    assert (tmp_path / "stderr").read_text().endswith("stopping\nstopped\n")
    assert "bye bye" in (state_dir / "logs" / "redis.log").read_text()


def test_ctrl_c_while_it_starts(
    environ: dict[str, str], state_dir: Path, tiny_models: Path, tmp_path: Path, until: Until, alive: Alive
) -> None:
    with foreground(tiny_models, environ, tmp_path / "stderr") as process:
        until((state_dir / "logs" / "workers.log").exists, 30)
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert alive() == []


def test_a_second_ctrl_c_ends_all_at_once(
    environ: dict[str, str], state_dir: Path, tiny_models: Path, tmp_path: Path, until: Until, alive: Alive
) -> None:
    with foreground(tiny_models, environ, tmp_path / "stderr") as process:
        until((state_dir / "logs" / "workers.log").exists, 30)
        # A part that does not react, so that the first Ctrl-C would take its time.
        part(state_dir, "interlace_workers").suspend()
        process.send_signal(signal.SIGINT)
        until(lambda: "stopping" in (tmp_path / "stderr").read_text(), 20)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert time.monotonic() - started < 5
    assert alive() == []


def test_nothing_outlives_a_killed_one(
    tiny_models: Path,
    environ: dict[str, str],
    state_dir: Path,
    tmp_path: Path,
    until: Until,
    interlace: Interlace,
    alive: Alive,
) -> None:
    with foreground(tiny_models, environ, tmp_path / "stderr") as process:
        ready(process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: alive() == [], 40)
    assert interlace("status").returncode == 3
    assert "Nothing is running" in interlace("down").stdout


def test_redis_gone_ends_all(tiny_models: Path, environ: dict[str, str], state_dir: Path, tmp_path: Path) -> None:
    with foreground(tiny_models, environ, tmp_path / "stderr") as process:
        ready(process)
        os.kill(next(p.pid for p in psutil.Process(process.pid).children() if "server" in p.name()), signal.SIGKILL)
        assert process.wait(40) == 1
    said = (tmp_path / "stderr").read_text()
    assert "interlace: redis was ended by SIGKILL; nothing works without it. The end of" in said


def test_no_model_can_be_loaded(interlace: Interlace, tmp_path: Path, state_dir: Path) -> None:
    done = interlace("up", "--model", tmp_path / "nowhere", "--runtime", "process")
    assert (done.returncode, done.stdout) == (1, "")
    said = f"  local/nowhere (text-generation): There is no folder {tmp_path}/nowhere."
    assert f"interlace: No model could be loaded:\n{said}" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_of_two_models_can_be_loaded(
    interlace: Interlace, tiny_models: Path, tmp_path: Path, state_dir: Path
) -> None:
    words = ["up", "--detach", "--runtime", "process", "--model", tiny_models, "--model", tmp_path / "nowhere"]
    done = interlace(*words)
    assert done.returncode == 0, done.stderr
    assert "Not hosted:\n  local/nowhere (text-generation): There is no folder" in done.stderr
    status = interlace("status").stdout
    assert "local/nowhere: There is no folder" in status
    assert interlace("down").returncode == 0


def test_a_part_that_ends_while_it_starts(interlace: Interlace, tmp_path: Path, state_dir: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'interlace_server' in sys.orig_argv: sys.exit('out of luck')\n"
    )
    done = interlace("up", "--model", tmp_path, "--runtime", "process", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    log = state_dir / "logs" / "gateway.log"
    assert f"interlace: gateway ended with exit code 1 while it started. The end of {log}:" in done.stderr
    assert "out of luck" in done.stderr


def test_a_shared_redis_with_models_of_others(
    interlace: Interlace, tiny_models: Path, tmp_path: Path, redis_url: str
) -> None:
    first = interlace("up", "--model", tmp_path / "nowhere", "--runtime", "process", INTERLACE_REDIS__URL=redis_url)
    assert first.returncode == 1
    (tmp_path / "interlace.yaml").write_text(
        f"redis: {{url: {redis_url}}}\nruntime: process\nmodels: [{{source: {tiny_models}}}]\n"
    )
    done = interlace("up", "--detach")
    assert done.returncode == 0, done.stderr
    assert interlace("down").returncode == 0
