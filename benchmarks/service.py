"""What the benchmarks share: a model to host, an Interlace to host it, keys for it, and what machine it was."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from interlace_state.config import Config
from interlace_state.config_file import load
from interlace_state.store import open_state
from interlace_state.tenants import Role

#: What clients call the model that `write_gpt2` writes.
GPT2 = "benchmark/gpt2"
_STOP = 60.0  # seconds
_LOGGED = 10.0  # seconds until a job's end is in the log


@dataclass
class Service:
    """A running `interlace up`."""

    process: "subprocess.Popen[str]"
    url: str
    state_dir: Path
    ready_seconds: float

    @property
    def config(self) -> Config:
        """What it runs with, the address of its own Redis included."""
        return load(self.state_dir / "run" / "config.json", {})

    def key(self, tenant: str, role: Role = "user") -> str:
        """The secret of a new API key. From the first one on, everybody needs one."""

        async def mint() -> str:
            async with open_state(self.config) as state:
                return (await state.tenants.mint(tenant, role))[1]

        return asyncio.run(mint())


@contextmanager
def running(folder: Path, configuration: Mapping[str, Any]) -> Iterator[Service]:
    """Start Interlace in ``folder`` on a free port of loopback, wait until it is ready, stop it at the end."""
    state_dir = folder / "s"
    file = folder / "interlace.yaml"
    file.write_text(json.dumps({"state_dir": str(state_dir), **configuration}))
    command = [sys.executable, "-m", "interlace_deploy", "up", "--config", str(file), "--port", "0"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield Service(process, _ready(process), state_dir, time.perf_counter() - started)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_STOP)


def _ready(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready "):
            return line.removeprefix("ready ").strip()
    raise SystemExit("Interlace did not start")


def stock_client(url: str, home: Path, threads: int = 1) -> None:
    """Make this process a client of the server. Call it before anything imports nnsight or transformers."""
    os.environ.update({"NDIF_HOST": url, "HF_ENDPOINT": f"{url}/hf", "HF_HOME": str(home)})
    os.environ.pop("HF_HUB_OFFLINE", None)
    import nnsight
    import torch

    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    torch.set_num_threads(threads)


def local_model(source: str) -> Any:
    """The model that the server hosts from ``source``, loaded here in fp32. Call `stock_client` first."""
    import torch
    from nnsight import TransformersModel
    from transformers import AutoTokenizer

    from interlace_state.settings.models import ModelConfig
    from interlace_workers.sources.resolving import resolve

    path = str(resolve(ModelConfig(source=source), Config().cache_dir, print).path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    return TransformersModel(path, task="text-generation", tokenizer=tokenizer, dtype=torch.float32, dispatch=True)


def steps(server: Service, job_ids: Collection[str]) -> dict[str, dict[str, float]]:
    """Of each of these jobs what its worker's log says that its steps took, in seconds."""
    logs, until = worker_logs(server), time.monotonic() + _LOGGED
    while True:
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line.startswith("{")]
        ended = [line for line in map(json.loads, lines) if line["event"] == "ended" and line["job"] in job_ids]
        found = {line["job"]: line["seconds"] for line in ended}
        if len(found) == len(job_ids):
            return found
        if time.monotonic() > until:
            raise SystemExit(f"{', '.join(map(str, logs))} know {len(found)} of {len(job_ids)} jobs")
        time.sleep(0.1)


def worker_logs(server: Service) -> list[Path]:
    """Where replicas log: with their placer, or, of those on a Ray of our own, in its session's folder."""
    logs = [server.state_dir / "logs" / "workers.log"]
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            said = [word.partition("=")[2] for word in process.cmdline() if word.startswith("--session_dir=")]
            if said:
                return logs + sorted((Path(said[0]) / "logs").glob("worker-*.err"))
    return logs


def write_gpt2(folder: Path, **sizes: int) -> None:
    """GPT-2 with random weights; without ``sizes`` 124M parameters in fp32."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[UNK]").save_pretrained(folder)
    GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **sizes)).save_pretrained(folder)


def small_gpt2(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write a GPT-2 of 2M parameters; returns the configuration's entry that hosts it as `GPT2`."""
    sizes = {"vocab_size": 1000, "n_positions": 128, "n_embd": 128, "n_layer": 8, "n_head": 4}
    # In a process of its own: transformers reads where the hub is when it is imported, see `stock_client`.
    writing = multiprocessing.get_context("spawn").Process(target=write_gpt2, args=(folder,), kwargs=sizes)
    writing.start()
    writing.join()
    if writing.exitcode != 0:
        raise SystemExit("the model could not be written")
    return {"source": str(folder), "repo_id": GPT2, "threads": 1, **changes}


def _named_here(program: Path) -> str:
    """A program of ours, as it is called from the checkout."""
    return str(Path("benchmarks") / program.resolve().relative_to(Path(__file__).parent.resolve()))


def circumstances() -> dict[str, Any]:
    """The command, the machine and its load: what a figure is worth nothing without."""
    return {
        "command": " ".join([_named_here(Path(sys.argv[0])), *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load": [round(one, 2) for one in os.getloadavg()],
        "priority": f"nice {os.nice(0)}" if os.sched_getscheduler(0) == os.SCHED_OTHER else "real-time",
        "versions": {name: version(name) for name in ("torch", "transformers", "nnsight", "ray") if find_spec(name)},
    }
