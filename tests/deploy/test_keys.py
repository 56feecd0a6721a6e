"""`interlace keys`, before and while Interlace runs."""

import json
import subprocess
import sys
from pathlib import Path


def interlace(state_dir: Path, *words: str, **configuration: object) -> "subprocess.CompletedProcess[str]":
    file = state_dir / "interlace.yaml"
    file.write_text(json.dumps({"state_dir": str(state_dir), **configuration}))
    command = [sys.executable, "-m", "interlace_deploy", *words, "--config", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


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
    assert "made, UTC" in interlace(folder, "keys", "list").stdout
    rotated = interlace(folder, "keys", "rotate", key["id"], "--overlap", "2h")
    assert rotated.stdout.strip() not in ("", secret)
    _, fresh = json.loads(interlace(folder, "keys", "list", "--json").stdout)
    revoked = interlace(folder, "keys", "revoke", key["id"])
    assert (revoked.returncode, revoked.stdout, revoked.stderr) == (0, "", "")
    again = interlace(folder, "keys", "revoke", key["id"])
    assert again.returncode == 1
    assert f"no key {key['id']}" in again.stderr
    last = interlace(folder, "keys", "revoke", fresh["id"])
    assert last.returncode == 0
    assert "whoever is on this machine may use the server without one again" in last.stderr
    written = "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
    assert secret not in written
    assert [json.loads(line)["action"] for line in (folder / "audit.jsonl").read_text().splitlines()] == [
        "key created",
        "key rotated",
        "key revoked",
        "key revoked",
    ]


def test_a_wrong_word_is_told(home: Path) -> None:
    folder = home / "wrong-keys"
    folder.mkdir()
    for words in (("--tenant", "Lab A"), ("--tenant", "lab", "--expires", "soon")):
        done = interlace(folder, "keys", "create", *words)
        assert done.returncode == 2
        assert "expected" in done.stderr


def test_a_key_that_ended_is_not_rotated(home: Path) -> None:
    folder = home / "ended-keys"
    folder.mkdir()
    assert interlace(folder, "keys", "create", "--tenant", "lab", "--expires", "2020-01-01").returncode == 0
    assert "2020-01-01 00:00:00" in interlace(folder, "keys", "list").stdout
    assert interlace(folder, "keys", "create", "--tenant", "lab").returncode == 0
    ended, live = (key["id"] for key in json.loads(interlace(folder, "keys", "list", "--json").stdout))
    assert interlace(folder, "keys", "rotate", live).returncode == 0
    for key_id, said in (
        (ended, f"Key {ended} has ended."),
        (live, f"Key {live} was rotated already: "),
        ("nobody", "There is no key nobody"),
    ):
        done = interlace(folder, "keys", "rotate", key_id)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
        assert "il-" not in done.stderr
    assert len(json.loads(interlace(folder, "keys", "list", "--json").stdout)) == 3


def test_the_last_key_of_a_server_that_others_reach(home: Path) -> None:
    folder = home / "last-key"
    folder.mkdir()
    for expires in ((), ("--expires", "2020-01-01")):
        assert interlace(folder, "keys", "create", "--tenant", "lab", *expires).returncode == 0
    live, ended = (key["id"] for key in json.loads(interlace(folder, "keys", "list", "--json").stdout))
    assert "Every key that is left has ended: nobody can enter" in interlace(folder, "keys", "revoke", live).stderr
    done = interlace(folder, "keys", "revoke", ended, gateway={"host": "0.0.0.0"})
    assert "That was the last key: nobody can enter until one is made, with: interlace keys create" in done.stderr
    assert f"--config {folder}/interlace.yaml" in done.stderr
