"""The audit log is whole lines for its owner only, and strangers cannot fill the disk with it."""

import json
import stat
from pathlib import Path

from interlace_state.audit import Audit


def test_lines_are_added_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "audit.jsonl"
    for number in range(2):
        Audit(path).write("accepted", job=number)
    assert [json.loads(line)["job"] for line in path.read_text().splitlines()] == [0, 1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_flood_of_refusals_is_counted(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    for _ in range(5000):
        audit.refuse(why="unauthorized")
    assert len(audit.path.read_text().splitlines()) <= 1200  # a minute may have turned between them, once
    audit.write("accepted")
    assert json.loads(audit.path.read_text().splitlines()[-1])["action"] == "accepted"
