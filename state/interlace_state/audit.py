"""Who ran what, when, with which outcome and cost: append-only JSON lines, without contents and without secrets."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from interlace.protocol.event import Ended
from interlace.protocol.job import Job

_MOST_REFUSALS = 600  # lines a minute of one process: strangers must not fill the disk

_MOST_READ = 4 << 20  # bytes, of those that somebody looks at


class Audit:
    """The log of one machine; every process there appends whole lines to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._minute = 0
        self._refusals = 0
        self._left_out = 0

    def refuse(self, **fields: object) -> None:
        """Append a line on a refusal; of a flood, what is over 600 a minute is only counted. Raises OSError."""
        if (minute := int(time.time() // 60)) != self._minute:
            self._minute, self._refusals = minute, 0
        self._refusals += 1
        if self._refusals > _MOST_REFUSALS:
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        self.write("refused", **fields, **({"left_out_before": left_out} if left_out else {}))

    def ended(self, job: Job, end: Ended) -> None:
        """Append a line on a job's end; a log that cannot be written is said on stderr, and the job has ended."""
        cost = end.cost.model_dump(exclude_none=True)
        try:
            self.write("ended", tenant=job.tenant, job=job.id, model=str(job.model), outcome=end.state, **cost)
        except OSError as error:
            print(f"interlace: {self.path}: {error.strerror}", file=sys.stderr, flush=True)

    def last(self, most: int, containing: str = "") -> list[dict[str, object]]:
        """The newest lines that contain a text, the newest first, of the log's last megabytes. Raises OSError."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - _MOST_READ))
            lines = file.read().decode(errors="replace").splitlines()
        found: list[dict[str, object]] = []
        for line in reversed(lines):
            if containing in line and line.startswith("{"):
                with contextlib.suppress(ValueError):  # the first may be cut
                    found.append(json.loads(line))
            if len(found) == most:
                break
        return found

    def write(self, action: str, **fields: object) -> None:
        """Append one line. Raises OSError."""
        line = json.dumps({"time": round(time.time(), 3), "action": action, **fields}, default=str) + "\n"
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
