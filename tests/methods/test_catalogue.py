"""The catalogue: found without torch, no name twice, and each method's own rules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import interlace.methods
from interlace.methods import BrokenCatalogue, catalogue, find
from interlace.methods.base import Params, Result, Table
from interlace.protocol.artifact import LAYOUTS
from interlace.protocol.errors import UnknownMethod

FOLDER = Path(interlace.methods.__file__).parent
OWN = sorted(folder.name for folder in FOLDER.iterdir() if (folder / "spec.py").exists())
WITHOUT_TORCH = """
import sys
for name in ("torch", "nnsight", "numpy", "transformers", "matplotlib", "safetensors"):
    sys.modules[name] = None
from interlace.methods import catalogue
from interlace.methods.views import view
for spec in catalogue().values():
    assert view(spec).params["type"] == "object"
print(*catalogue())
"""


def entry_point(folder: Path, name: str, place: str, source: str) -> None:
    """Lay a package's module and its entry point into a folder of the path."""
    (folder / f"{place}.py").write_text(source)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[interlace.methods]\n{name} = {place}\n")


def test_it_needs_no_torch(packages: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(packages)}, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(catalogue())


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("from interlace.methods.lens.spec import SPECS", "Two methods are called lens.logit@1"),
        ("SPECS = ['lens']", "must be a tuple of"),
        ("import no_such_module", "cannot be read: ModuleNotFoundError"),
        ("", "cannot be read: AttributeError"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packages: Path, source: str, sentence: str
) -> None:
    place = f"third_party_{abs(hash(source))}"
    entry_point(tmp_path, "third-party", place, source)
    monkeypatch.syspath_prepend(str(tmp_path))
    catalogue.cache_clear()
    try:
        with pytest.raises(BrokenCatalogue, match=sentence):
            catalogue()
    finally:
        catalogue.cache_clear()


def test_a_name_without_a_version_is_the_newest(packages: Path) -> None:
    assert find("kit.steps") is find("kit.steps@2")
    assert find("norm.lens").run == "norm_lens.run:run"
    with pytest.raises(UnknownMethod, match=r"kit\.steps@1 is installed.*lens\.logit@1"):
        find("kit.steps@1")


@pytest.mark.parametrize("name", OWN)
def test_a_folder_stands_by_itself(name: str) -> None:
    for path in (FOLDER / name).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                others = [one for one in OWN if one != name and module.startswith(f"interlace.methods.{one}.")]
                assert not others, f"{path} imports {module}"


def test_every_method_says_what_it_must() -> None:
    for spec in catalogue().values():
        assert issubclass(spec.params, Params)
        assert issubclass(spec.result, Result)
        assert spec.title.endswith(".")
        assert set(spec.makes) <= set(LAYOUTS)
        for kinds in spec.takes.values():
            assert set(kinds) <= set(LAYOUTS)
        if spec.run.startswith("interlace."):
            assert spec.cites, spec.ref
            assert spec.page.startswith("docs/methods/"), spec.ref


def test_what_is_no_number_in_a_table() -> None:
    table = Table(name="x", columns=("a", "b"), rows=((float("nan"), 1), (float("inf"), "two")))
    assert table.rows == ((None, 1), (None, "two"))
    assert Table.model_validate_json(table.model_dump_json()) == table
    assert table.frame()["b"].tolist() == [1, "two"]
