"""What is installed has the templates and the pages' own files, too."""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "server" / "interlace_server" / "page"


def test_a_wheel_has_all_of_the_pages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=240)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("interlace_server/page/")}
    ours = {
        f"interlace_server/page/{path.relative_to(PAGE)}"
        for path in PAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours
    assert packed == ours


def test_what_others_wrote_is_what_is_said_of_it() -> None:
    told = re.findall(r"^\| `(\S+)` \|.*`([0-9a-f]{64})` \|$", (PAGE / "static" / "README.md").read_text(), re.M)
    assert [name for name, _ in told] == sorted(path.name for path in PAGE.glob("static/*.min.*"))
    for name, digest in told:
        assert hashlib.sha256((PAGE / "static" / name).read_bytes()).hexdigest() == digest
