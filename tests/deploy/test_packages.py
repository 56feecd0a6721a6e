"""What a command needs to be installed: no more than the extra that brings it, or the image that it is typed in."""

import json
import subprocess
import tempfile
import venv
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distributions, requires
from pathlib import Path

import pytest
from locks import ROOT, asked, pinned
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Typed = Callable[..., tuple[list[int], str]]

#: Where nothing listens.
NOWHERE = ("--url", "http://127.0.0.1:9")
REMOTE = [
    ["jobs"],
    ["cancel", "some-job"],
    ["admin", "pause", "lab/model"],
    ["admin", "limits", "lab"],
    ["methods"],
    ["run", "lens.logit", "--model", "lab/model"],
    ["artifacts", "list"],
    ["deploy", "lab/model"],
    ["deploy", "./folder"],
    ["deploy", "smollm2-135m-instruct"],
    ["scale", "lab/model", "--pin"],
    ["evict", "smollm2-135m-instruct"],
    ["models"],
    ["models", "--model", "smollm2-135m-instruct"],
    ["lake", "search", "kind:edit"],
    ["lake", "show", "some-entry"],
    ["status"],
]
FOLDERS = ("client", "state", "server", "workers", "deploy")
ALL = """
import json, sys
from interlace_deploy.cli import main
print(json.dumps([main(words) for words in json.loads(sys.argv[1])]), file=sys.stderr)
"""


def brought(extra: str) -> set[str]:
    """The distributions that `pip install 'interlace[EXTRA]'` brings."""
    found: set[str] = set()

    def follow(requirement: Requirement) -> None:
        name = canonicalize_name(requirement.name)
        if name not in found or requirement.extras:
            found.add(name)
            for other in needed(requirement.name, requirement.extras):
                follow(other)

    for requirement in (*asked(None), *asked(extra)):
        follow(requirement)
    return found


def needed(name: str, extras: set[str]) -> Iterator[Requirement]:
    try:
        texts = requires(name) or ()
    except PackageNotFoundError:  # of another platform
        return
    for requirement in map(Requirement, texts):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or ("",)):
            yield requirement


@pytest.fixture
def typed(tmp_path: Path) -> Typed:
    """The exit codes of commands, and all that they said, in an environment that holds these distributions."""

    def type_(there: set[str], *commands: list[str]) -> tuple[list[int], str]:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        venv.create(folder, symlinks=True)
        packages = next(folder.glob("lib/python*/site-packages"))
        for one in distributions():
            name = canonicalize_name(one.metadata["Name"])
            if name in there or name == "interlace":
                for top in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
                    if not top.endswith(".pth") and not (packages / top).exists():
                        (packages / top).symlink_to(str(one.locate_file(top)))
        (packages / "folders.pth").write_text("\n".join(str(ROOT / name) for name in FOLDERS))
        words = [folder / "bin" / "python", "-c", ALL, json.dumps(commands)]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        *said, codes = done.stderr.splitlines()
        return json.loads(codes), "\n".join([*said, done.stdout])

    return type_


@pytest.mark.parametrize("extra", ["client", "commands"])
def test_a_researcher_has_the_commands_that_ask_a_server(extra: str, typed: Typed) -> None:
    there = brought(extra)
    assert not {"redis", "ray", "fastapi"} & there
    codes, said = typed(there, *([*words, *NOWHERE] for words in REMOTE))
    assert codes == [3] * len(REMOTE), said


def test_what_a_command_lacks_is_named_with_what_brings_it(typed: Typed) -> None:
    codes, said = typed(brought("commands"), ["lake", "rebuild"], ["doctor"], ["keys", "list"])
    assert codes == [1, 1, 1]
    assert said.count("needs `redis`, which is not installed: pip install 'interlace[state]'") == 2
    assert "redis: pip install 'redis>=" in said
    codes, said = typed({"pyyaml", *brought("all")} - {"httpx"}, ["jobs"])
    assert (codes, said.strip().partition("needs ")[2]) == (
        [1],
        "`httpx`, which is not installed: pip install 'interlace[commands]'",
    )


def test_an_operator_has_them_in_the_gateways_container(typed: Typed) -> None:
    codes, said = typed(set(pinned("requirements-gateway.txt")), *([*words, *NOWHERE] for words in REMOTE))
    assert codes == [3] * len(REMOTE), said
