"""Packages of methods, installed into a folder that all parts of a service find on their path."""

import shutil
import subprocess
import sys
from pathlib import Path

from interlace.methods import catalogue

ROOT = Path(__file__).parent.parent
KIT = ROOT / "tests" / "kit" / "kit_methods"


def install(folder: Path) -> None:
    """The example package by pip, and the tests' own by hand; this process finds them from now on, too."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--target", str(folder), str(ROOT / "examples" / "method_package")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shutil.copytree(KIT, folder / "kit_methods")
    about = folder / "kit_methods-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kit-methods\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[interlace.methods]\nkit = kit_methods.spec\n")
    sys.path.append(str(folder))
    catalogue.cache_clear()
