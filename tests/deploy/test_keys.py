"""`interlace keys`, before and while Interlace runs."""

import json
import subprocess
import sys
from pathlib import Path


def interlace(state_dir: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    file = state_dir / "interlace.yaml"
    file.write_text(json.dumps({"state_dir": str(state_dir)}))
    command = [sys.executable, "-m", "interlace_deploy", *words, "--config", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_keys_life_before_the_first_start(home: Path) -> None:
    folder = home / "keys"
    folder.mkdir()
    made = interlace(folder, "keys", "create", "--tenant", "lab-a", "--models", "org/model", "--expires", "30d")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert secret.startswith("il-")
    (key,) = json.loads(interlace(folder, "keys", "list", "--json").stdout)
    assert (key["tenant"], key["role"], key["models"]) == ("lab-a", "user", ["org/model"])
    assert secret not in str(key)
    assert key["expires"] > key["created"]
    rotated = interlace(folder, "keys", "rotate", key["id"], "--overlap", "2h")
    assert rotated.stdout.strip() not in ("", secret)
    assert len(json.loads(interlace(folder, "keys", "list", "--json").stdout)) == 2
    assert interlace(folder, "keys", "revoke", key["id"]).returncode == 0
    again = interlace(folder, "keys", "revoke", key["id"])
    assert again.returncode == 1
    assert f"no key {key['id']}" in again.stderr
    written = "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
    assert secret not in written
    assert [json.loads(line)["action"] for line in (folder / "audit.jsonl").read_text().splitlines()] == [
        "key created",
        "key rotated",
        "key revoked",
    ]


def test_a_wrong_word_is_told(home: Path) -> None:
    folder = home / "wrong-keys"
    folder.mkdir()
    for words in (("--tenant", "Lab A"), ("--tenant", "lab", "--expires", "soon")):
        done = interlace(folder, "keys", "create", *words)
        assert done.returncode == 2
        assert "expected" in done.stderr
