"""The numbers of a checkpoint whose files have no headers, as nnsight counts them: by its architecture.

That imports torch and may run the checkpoint's own code, so it is done in a process of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

from interlace.protocol.model import ModelKey
from interlace_state import log
from interlace_workers.spawn import environment

_LONGEST = 120.0  # seconds
_WIDTH = 4  # bytes of what is asked for
_PROGRAM = """
import sys
from interlace import add_tasks
from nnsight.modeling.mixins.remotable import Remotable
add_tasks()
print(Remotable.describe_checkpoint(sys.argv[1], "float32").size_bytes)
"""


def n_params(folder: Path, key: ModelKey) -> int | None:
    """How many numbers the model in a folder has, buffers included; None where that cannot be found out."""
    path, _, suffix = key.canonical.partition(":")
    fields = json.loads(suffix) | {"repo_id": str(folder), "revision": None}
    command = [sys.executable, "-P", "-c", _PROGRAM, f"{path}:{json.dumps(fields)}"]
    try:
        done = subprocess.run(
            command, env=environment(), cwd="/", capture_output=True, text=True, timeout=_LONGEST, check=True
        )
        return int(done.stdout.split()[-1]) // _WIDTH
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        log.info("not_described", model=str(key), reason=said[-1] if said else "")
        return None
