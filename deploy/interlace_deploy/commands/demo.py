"""`interlace demo`: a whole Interlace of its own, one example against it, and its end, with the seconds of each."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from interlace_deploy.parts import tether
from interlace_deploy.problems import CommandProblem
from interlace_deploy.screen import Screen
from interlace_deploy.settings import DEFAULT_MODEL, child_environment, read
from interlace_state.config import Config
from interlace_state.config_file import dump
from interlace_state.settings.gateway import GatewayConfig
from interlace_state.settings.models import ModelConfig

_EXAMPLE = Path("examples") / "first_trace.py"
_PICTURE = Path("out") / "logit_lens.png"
_STOP = 60.0  # seconds
#: What a client's environment could say of a hub, a cache or a server other than ours.
_CLIENT_ONLY = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "NDIF_", "NNSIGHT_")


def run(arguments: argparse.Namespace) -> int:
    """The command; the example's exit code. Raises CommandProblem if Interlace does not start."""
    screen = Screen()
    example = _find_example()
    config = read(arguments.config, os.environ)
    signal.signal(signal.SIGTERM, _interrupt)
    seconds: dict[str, float] = {}
    begun = time.time()
    with tempfile.TemporaryDirectory(prefix="interlace-demo-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "interlace.yaml"
        file.write_text(dump(_own(config, Path(folder), arguments.runtime)))
        screen.say(f"[1/3] starting Interlace with {DEFAULT_MODEL} (the first time fetches and converts it)")
        started = time.monotonic()
        with _service(file) as (service, url):
            seconds["start"] = time.monotonic() - started
            screen.say(f"[2/3] running {_EXAMPLE} as a client of {url}, with stock nnsight and no hub")
            code = _example(example, url, Path(folder) / "hf", seconds)
            if _PICTURE.exists() and _PICTURE.stat().st_mtime >= begun:
                screen.say(f"the picture is {_PICTURE.resolve()}")
            screen.say("[3/3] stopping")
            started = time.monotonic()
            _end(service)
            seconds["stop"] = time.monotonic() - started
    screen.say(", ".join(f"{step} {spent:.1f} s" for step, spent in seconds.items()))
    return code


def _find_example() -> Path:
    """In the checkout that we stand in, or in the one that we are installed from."""
    checkout = Path(__file__).resolve().parents[3]
    for root in (Path.cwd(), checkout):
        if (root / _EXAMPLE).is_file():
            return root / _EXAMPLE
    raise CommandProblem(f"There is no {_EXAMPLE} here: run `interlace demo` in a checkout of Interlace.")


def _own(config: Config, folder: Path, runtime: str | None) -> Config:
    """A configuration that meets no other Interlace: own state, a free port; the models' cache is the usual one."""
    return Config.model_validate(
        {
            "runtime": runtime or config.runtime,
            "models": (ModelConfig(source=DEFAULT_MODEL),),
            "gateway": GatewayConfig(port=0),
            "state_dir": folder / "state",
            "cache_dir": config.cache_dir,
        }
    )


@contextmanager
def _service(file: Path) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    """An `interlace up` that is ready, and its URL; ended with the block."""
    environ = {name: value for name, value in child_environment(os.environ).items() if name != "REDIS_URL"}
    words = [sys.executable, "-m", "interlace_deploy", "up", "--config", str(file)]
    service = _tied(words, environ, stdout=subprocess.PIPE)
    try:
        yield service, _ready(service)
    finally:
        _end(service)


def _ready(service: "subprocess.Popen[str]") -> str:
    assert service.stdout is not None
    for line in service.stdout:
        if line.startswith("ready "):
            return line.removeprefix("ready ").strip()
    raise CommandProblem(f"Interlace did not start (exit code {service.wait()}); the reason is above.")


def _example(example: Path, url: str, hf_home: Path, seconds: dict[str, float]) -> int:
    started = time.monotonic()
    client = _tied([sys.executable, str(example)], _client_environment(url, hf_home, os.environ))
    try:
        return client.wait()
    finally:
        seconds["example"] = time.monotonic() - started
        client.terminate()


def _client_environment(url: str, hf_home: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """A client that knows of our gateway only: no hub, no cache, no proxy on the way."""
    kept = {name: value for name, value in child_environment(environ).items() if not name.startswith(_CLIENT_ONLY)}
    direct = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    ours = {"NDIF_HOST": url, "HF_ENDPOINT": f"{url}/hf", "HF_HOME": str(hf_home), "PYTHONUNBUFFERED": "1"}
    return {**kept, **direct, **ours}


def _tied(words: Sequence[str], environ: Mapping[str, str], stdout: int | None = None) -> "subprocess.Popen[str]":
    """Start in a session of its own, so that a Ctrl-C is ours to pass on; it ends when we do."""
    tied = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), str(int(signal.SIGTERM))]
    return subprocess.Popen(
        [*tied, *words],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        text=True,
        env=dict(environ),
        start_new_session=True,
    )


def _end(process: "subprocess.Popen[str]") -> None:
    """Ask it to, twice where once is not enough."""
    for patience in (_STOP, 10.0):
        if process.poll() is not None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    process.kill()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
