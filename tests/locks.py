"""What pyproject.toml asks for, and what the images' locks hold."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "deploy" / "images"


def asked(extra: str | None) -> Iterator[Requirement]:
    """What pyproject.toml asks for, extras that name others followed."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    for requirement in map(Requirement, texts):
        if requirement.name == "interlace":
            for other in requirement.extras:
                yield from asked(other)
        else:
            yield requirement


def pinned(*files: str) -> dict[str, str]:
    """Name -> version of some locks. Fails if one has no hash."""
    found = {}
    for block in re.split(r"^(?=[A-Za-z])", "".join((IMAGES / file).read_text() for file in files), flags=re.M)[1:]:
        match = re.match(r"([\w.-]+)==(\S+) \\\n", block)
        assert match, block
        assert "--hash=sha256:" in block, block
        found[canonicalize_name(match[1])] = match[2]
    return found
