"""A stock client as a user starts it: a script in a process of its own that knows a server and nothing of the tests."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_SECONDS = 480


def run(url: str, script: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> str:
    """Run a script against a server; what it prints. Fails with its output if it fails."""
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "NDIF_HOST": url, "HF_ENDPOINT": f"{url}/hf", "HF_HUB_OFFLINE": "0", **(environ or {})},
        cwd=script.parent,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{script.name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
