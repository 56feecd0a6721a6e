"""The house rules: who imports whom, what an import does, who reads the environment, how long code is."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlace_workers import spawn

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "interlace": ROOT / "client",
    "interlace_state": ROOT / "state",
    "interlace_server": ROOT / "server",
    "interlace_workers": ROOT / "workers",
    "interlace_deploy": ROOT / "deploy",
}
LONGEST_FILE = 400  # lines
LONGEST_FUNCTION = 60  # lines
LONGEST_README = 25  # lines
#: Where a process begins: elsewhere the environment is passed in.
READS_ENVIRONMENT = {
    "interlace/_client.py",  # a notebook's: NDIF_HOST and NDIF_API_KEY, as nnsight reads them
    "interlace_server/__main__.py",
    "interlace_server/page/drawing.py",  # sets a name for numpy, in a process of its own
    "interlace_workers/placement/placer.py",
    "interlace_workers/runtimes/replica_process.py",
    "interlace_workers/zygote.py",
    "interlace_workers/spawn.py",  # hands a few names on to the process that it starts
    *(f"interlace_deploy/commands/{command}.py" for command in ("backup", "demo", "detach", "doctor", "models", "up")),
    "interlace_deploy/meeting.py",
    "interlace_deploy/own_hub.py",  # takes a name out of it
    "interlace_deploy/target.py",
}
#: Runs alone in every process that imports it: a network, a file for writing or a new process would be an effect.
WATCH = """
import sys

def forbid(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.posix_spawn"):
        # libraries of others look for what the machine has: matplotlib lists its fonts the first time
        if not any(tool in str(arguments[0]) for tool in ("ldconfig", "gcc", "uname", "lscpu", "fc-list")):
            raise AssertionError(f"import of {sys.argv[1]} does {event} {arguments}")

sys.addaudithook(forbid)
import importlib
importlib.import_module(sys.argv[1])
"""


def modules() -> list[tuple[str, Path]]:
    """Every module of ours, by its import name."""
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=240, check=False, cwd=ROOT
    )


def test_import_contracts() -> None:
    """The contracts are in pyproject.toml."""
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports_without_an_effect(package: str) -> None:
    names = [name for name, _ in modules() if name.split(".")[0] == package and not name.endswith("__main__")]
    code = "\n".join([WATCH, *(f"importlib.import_module({name!r})" for name in names)])
    done = python("-c", code, package)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["interlace_server.__main__", "interlace_server.app", "interlace_state.store"])
def test_the_gateway_stays_small(name: str) -> None:
    heavy = ["torch", "nnsight", "transformers", "ray", "numpy", "cloudpickle", "interlace_workers"]
    code = f"import sys, {name}; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_child_of_user_code_knows_no_way_out() -> None:
    kept_out = "sorted(name for name in ('redis', 'ray', 'interlace_state') if sys.modules.get(name))"
    # bitsandbytes brings PyTorch's compiler, which takes every library that it knows.
    brought = "del sys.modules['bitsandbytes']; import bitsandbytes, torch._inductor.remote_cache"
    done = python("-c", f"{spawn.BEFORE} import interlace_workers.zygote; {brought}; print({kept_out})")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_words_need_pydantic_only() -> None:
    code = (
        "import sys, interlace.protocol.event, interlace.protocol.frames, interlace.protocol.errors;"
        "print(sorted({'torch', 'redis', 'fastapi', 'httpx', 'yaml'} & set(sys.modules)))"
    )
    assert python("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "path"), [pytest.param(*pair, id=pair[0]) for pair in modules()])
def test_length(name: str, path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE
    long = [f"{node.name}: {length}" for node, length in functions(ast.parse(text)) if length > LONGEST_FUNCTION]
    assert long == []


def functions(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, (node.end_lineno or node.lineno) - node.lineno + 1


def test_the_environment_is_read_at_the_edges_only() -> None:
    readers = set()
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            is_environ = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
            if is_environ and isinstance(node.value, ast.Name) and node.value.id == "os":
                readers.add(path.relative_to(PACKAGES[name.split(".")[0]]).as_posix())
    assert readers - READS_ENVIRONMENT == set()


def test_no_own_import_is_hidden_in_a_function() -> None:
    hidden = []
    for name, path in modules():
        tree = ast.parse(path.read_text())
        inside = {id(node) for function, _ in functions(tree) for node in ast.walk(function)}
        for node in ast.walk(tree):
            if id(node) in inside and isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
                ours = any(one.split(".")[0] in PACKAGES for one in names)
                hidden += [f"{name}:{node.lineno}"] if ours else []
    assert hidden == []


def test_a_broad_except_says_why() -> None:
    """Ruff's BLE001 finds them; a reason follows the mark that silences it."""
    silent = []
    for name, path in modules():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if "noqa: BLE001" in line and len(line.partition("BLE001")[2].strip(" -")) < 10:
                silent.append(f"{name}:{number}")
    assert silent == []


@pytest.mark.parametrize("folder", PACKAGES.values(), ids=lambda folder: folder.name)
def test_every_room_says_what_it_is_for(folder: Path) -> None:
    assert 0 < len((folder / "README.md").read_text().splitlines()) <= LONGEST_README


@pytest.mark.parametrize("package", PACKAGES)
def test_types_travel_with_the_package(package: str) -> None:
    assert (PACKAGES[package] / package / "py.typed").exists()
