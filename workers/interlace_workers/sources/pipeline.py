"""A diffusers pipeline: model_index.json names its components, and each lies in a folder of its name."""

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
#: What a component of such a class is made of, its folder says in JSON and text, without weights.
_LIGHT = ("Tokenizer", "TokenizerFast", "Processor", "ProcessorPil", "Extractor", "Scheduler")


def is_pipeline(folder: Path) -> bool:
    return (folder / INDEX).is_file()


def components(index: str) -> dict[str, str]:
    """Component -> its class, of those that model_index.json does not leave out. Raises ValueError for a damaged one.

    Each name is a folder's, and cannot lead out of the pipeline's.
    """
    found: dict[str, str] = {}
    for name, spec in json.loads(index).items():
        if name.startswith("_") or not isinstance(spec, list):  # a setting of the pipeline
            continue
        _, kind = spec
        if kind is None:
            continue
        if not (name.isidentifier() and isinstance(kind, str)):
            raise ValueError(f"a component called {name[:80]!r}, of the class {str(kind)[:80]!r}")
        found[name] = kind
    return found


def folders(folder: Path) -> dict[str, Path]:
    """Component -> its folder. Raises ValueError, OSError."""
    return {name: folder / name for name in components((folder / INDEX).read_text())}


def configs(folder: Path) -> dict[str, Any]:
    """Component with weights -> its config.json, of those that have one. Raises ValueError, OSError."""
    found = {name: folder / name / "config.json" for name in with_weights((folder / INDEX).read_text())}
    return {name: json.loads(file.read_text()) for name, file in found.items() if file.is_file()}


def with_weights(index: str) -> list[str]:
    """The components that have weights. Raises ValueError."""
    return [name for name, kind in components(index).items() if not kind.endswith(_LIGHT)]


def inside(name: str, names: Iterable[str]) -> set[str]:
    """Of a repository's file names, those that lie in a component's folder, without it."""
    return {path.removeprefix(f"{name}/") for path in names if fnmatch(path, f"{name}/*") and path.count("/") == 1}
