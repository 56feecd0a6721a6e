"""Who ran what, when, with which outcome and cost: append-only JSON lines, without contents and without secrets."""

import json
import os
import time
from pathlib import Path


class Audit:
    """The log of one machine; every process there appends whole lines to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, action: str, **fields: object) -> None:
        """Append one line. Raises OSError."""
        line = json.dumps({"time": round(time.time(), 3), "action": action, **fields}, default=str) + "\n"
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
