"""`interlace backup` and `interlace restore`: what is lost with a disk is there again, jobs and results."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nnsight
import pytest
import running
import tiny
import tiny_adapters
import torch
from nnsight import CONFIG, TransformersModel
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.modeling import huggingface

import interlace as ours

PROMPT = "The Eiffel Tower is in the city of"
DEADLINE = 120.0  # seconds


@pytest.fixture
def client() -> Iterator[TransformersModel]:
    huggingface._ID_CACHE[tiny.GPT2] = tiny.GPT2
    before = CONFIG.API.HOST
    yield TransformersModel(tiny.GPT2, task="text-generation")
    CONFIG.API.HOST = before


def started(home: Path, state_dir: Path) -> Any:
    configuration = {
        "runtime": "process",
        "models": [{"source": tiny.GPT2, "repo_id": tiny.GPT2, "threads": 1}],
        "gateway": {"port": 0, "drain_seconds": 1},
    }
    return running.interlace(home, configuration, seconds=300, state_dir=state_dir)


def posted(client: TransformersModel, server: running.Running) -> str:
    CONFIG.API.HOST = server.url
    nnsight.register("tests")
    with client.trace(PROMPT, remote=True, blocking=False) as tracer:
        logits = client.lm_head.output.save()
    return str(tracer.backend.job_id)


def fetched(client: TransformersModel, server: running.Running, job_id: str) -> torch.Tensor:
    CONFIG.API.HOST = server.url
    backend = RemoteBackend(client.to_model_key(), blocking=False, job_id=job_id)
    deadline = time.monotonic() + DEADLINE
    while (result := backend()) is None:
        assert time.monotonic() < deadline, backend.status
        time.sleep(0.05)
    return result["logits"]


def test_results_waiting_jobs_and_artifacts_outlive_the_disk(
    home: Path, tiny_models: Path, client: TransformersModel, tmp_path: Path
) -> None:
    state_dir = Path(tempfile.mkdtemp(prefix="b", dir=home))
    folder = tmp_path / "backup"
    with started(home, state_dir) as server:
        done = posted(client, server)
        before = fetched(client, server, done)
        with ours.Client(server.url) as admin:
            admin.pause(tiny.GPT2)
            adapter = tiny_adapters.write(tmp_path / "adapter", tiny.GPT2, seed=1)
            kept = admin.artifacts.upload(adapter)
        waits = posted(client, server)
        said = run("backup", folder, state_dir=state_dir)
        assert said.returncode == 0, said.stderr
    config = (state_dir / "interlace.yaml").read_text()
    shutil.rmtree(state_dir)
    state_dir.mkdir(mode=0o700)
    (state_dir / "interlace.yaml").write_text(config)
    said = run("restore", folder, state_dir=state_dir)
    assert said.returncode == 0, said.stderr
    with started(home, state_dir) as server:
        torch.testing.assert_close(fetched(client, server, done), before)
        with ours.Client(server.url) as admin:
            assert admin.job(waits).state == "queued"  # an operator's pause is in the backup, too
            admin.resume(tiny.GPT2)
            again = admin.artifacts.download(kept, tmp_path / "again")
        torch.testing.assert_close(fetched(client, server, waits), before)
        weights = "adapter_model.safetensors"
        assert (again / weights).read_bytes() == (adapter / weights).read_bytes()
        refused = run("restore", folder, state_dir=state_dir)
        assert refused.returncode == 1
        assert "interlace down" in refused.stderr


def test_where_there_is_nothing_a_backup_fails(home: Path, tmp_path: Path) -> None:
    """A nightly one of the wrong account, or of the wrong file, would else be found out when it is needed."""
    state_dir = Path(tempfile.mkdtemp(prefix="b", dir=home))
    (state_dir / "interlace.yaml").write_text(f"state_dir: {state_dir}\n")
    said = run("backup", tmp_path / "backup", state_dir=state_dir)
    assert (said.returncode, said.stdout) == (1, "")
    assert "There is nothing to back up: no key below 'interlace:' in Redis, and no file in the store." in said.stderr
    assert f"the state in {state_dir}, as the account " in said.stderr
    (state_dir / "store" / "results").mkdir(parents=True)
    (state_dir / "store" / "results" / "one").write_text("one")
    said = run("backup", tmp_path / "backup", state_dir=state_dir)
    assert said.returncode == 0, said.stderr
    assert "no key of Redis is in it" in said.stderr


def run(*words: str | Path, state_dir: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "interlace_deploy", *map(str, words), "--config", str(state_dir / "interlace.yaml")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=state_dir,
    )
