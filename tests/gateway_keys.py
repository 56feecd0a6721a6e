"""Keys of a service that runs, made by its own command."""

import subprocess
import sys

import running


def key_for(server: running.Running, tenant: str) -> str:
    """A new key's secret."""
    command = [sys.executable, "-m", "interlace_deploy", "keys", "create", "--tenant", tenant]
    command += ["--config", str(server.state_dir / "interlace.yaml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout.strip()
