"""What the tools of the extra `dev` say of the files that put the parts on machines."""

import os
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def validated(words: Sequence[str | Path]) -> None:
    """Run a checker that is installed beside Python. Fails with what it says."""
    scripts = sysconfig.get_path("scripts")
    environ = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"}
    said = subprocess.run(
        [f"{scripts}/{words[0]}", *words[1:]], env=environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr
