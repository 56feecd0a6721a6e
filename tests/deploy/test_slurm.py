"""deploy/slurm: the script does on this machine what it does on an allocation of one node."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import ports
from checked import validated

Until = Callable[[Callable[[], object]], object]
SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "interlace.sbatch"


def test_it_is_sound() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    validated(["shellcheck", "--shell=bash", SCRIPT])


def test_one_node(
    tiny_models: Path, state_dir: Path, tmp_path: Path, until: Until, alive: Callable[[], list[str]]
) -> None:
    bin_dir = tmp_path / "venv" / "bin"
    bin_dir.mkdir(parents=True)
    (bin_dir / "interlace").write_text(f'#!/bin/sh\nexec {sys.executable} -m interlace_deploy "$@"\n')
    (bin_dir / "interlace").chmod(0o755)
    port = ports.free()
    log = tmp_path / "job.log"
    environ = os.environ | {
        "IL_VENV": str(bin_dir.parent),
        "IL_HOME": str(state_dir),
        "IL_PORT": str(port),
    }
    with log.open("wb") as output:
        job = subprocess.Popen(["bash", SCRIPT, tiny_models], env=environ, stdout=output, stderr=output, cwd=tmp_path)
    try:
        until(lambda: "is ready on" in log.read_text() or job.poll() is not None)
        assert f"-L {port}:127.0.0.1:{port}" in log.read_text(), log.read_text()
        secret = (state_dir / "key").read_text().strip()
        url = f"http://127.0.0.1:{port}/v1/jobs"
        assert httpx.get(url, timeout=60).status_code == 401  # others have accounts on the node, too
        assert httpx.get(url, headers={"Authorization": f"Bearer {secret}"}, timeout=60).status_code == 200
        assert not [path for path in state_dir.iterdir() if path.stat().st_mode & 0o077]
        job.send_signal(signal.SIGTERM)
        assert job.wait(120) == 0
        until(lambda: not alive())
        assert not (state_dir / "slurm.yaml").exists()
    finally:
        job.kill()
        job.wait()
