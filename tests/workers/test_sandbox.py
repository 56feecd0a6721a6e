"""What the sandbox does where the kernel or the account gives less: in processes of their own."""

import json
import subprocess
import sys
from typing import Any

import pytest

from interlace_workers.sandbox import ESSENTIAL, LAYERS, Sandbox, Unsafe, jail, privileges

DROP = "from interlace_workers.sandbox import privileges; privileges.drop_capabilities()\n"
TRY = """
import json
from interlace_workers.sandbox import Sandbox, Unsafe
sandbox = Sandbox("required", hidden="/", without=WITHOUT)
try:
    sandbox.prepare()
    refused = ""
except Unsafe as error:
    refused = str(error)
print(json.dumps({"layers": sandbox.layers, "missing": sandbox.missing, "refused": refused}))
"""


def tried(before: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    code = before + TRY.replace("WITHOUT", repr(without))
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_matters_is_had_without_privileges_too() -> None:
    found = tried(DROP)
    assert found["refused"] == ""
    assert set(ESSENTIAL) <= set(found["layers"])
    assert set(found["layers"]) | set(found["missing"]) == set(LAYERS)
    assert "CAP_SYS_ADMIN" in found["missing"]["process id namespace"]


@pytest.mark.parametrize(
    ("layer", "broken"),
    [
        ("landlock", "from interlace_workers.sandbox import landlock\nlandlock._CREATE_RULESET = 9999\n"),
        ("seccomp", "from interlace_workers.sandbox import seccomp\nseccomp._SECCOMP = (9999, 9999)\n"),
        ("no capabilities", "from interlace_workers.sandbox import privileges\nprivileges._CAPSET = (9999, 9999)\n"),
    ],
)
def test_a_kernel_without_what_matters_is_refused_by_name(layer: str, broken: str) -> None:
    """The kernel's own answer to a call that it does not have."""
    found = tried(broken)
    assert f"does not give: {layer} (" in found["refused"]
    assert "isolation: available" in found["refused"]
    assert layer not in found["layers"]


def test_an_account_that_hides_its_files_from_others_loses_no_layer() -> None:
    usual = tried("")
    assert tried("import os\nos.umask(0o077)\n")["layers"] == usual["layers"]


def test_a_layer_that_does_not_hold_counts_as_missing() -> None:
    loose = "from interlace_workers.sandbox import seccomp\nseccomp.install = lambda pid: None\n"
    assert "does not hold" in tried(loose)["missing"]["seccomp"]


def test_homes_and_models_are_not_readable() -> None:
    readable = jail.libraries(hidden=__file__)
    assert not any(__file__.startswith(f"{path}/") for path in readable)
    assert "/" not in readable


def test_no_two_children_share_a_user_id() -> None:
    ids = privileges.UserIds()
    found = [ids.of(zygote, slot) for zygote in range(100, 110) for slot in range(20)]
    assert len(set(found)) == len(found)
    assert min(found) >= 20_000


def test_none_keeps_what_guards_against_accidents() -> None:
    sandbox = Sandbox("none", hidden="/")
    sandbox.prepare()
    assert sandbox.layers == ["own session", "parent death", "descriptors", "rlimits"]
    assert issubclass(Unsafe, Exception)
