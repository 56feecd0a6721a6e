"""What can be known of a checkpoint's weights without loading them."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interlace_workers.sources.source import SourceError

_LONGEST_HEADER = 100 << 20  # bytes; the bound of the safetensors library itself
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes of the block that reads it becomes a SourceError with the file's name."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SourceError(f"{path} is damaged ({reason}). Copy or download the model again.") from None


def wanted(names: set[str]) -> set[str]:
    """Of a repository's file names, the weight files that transformers would load; empty where there are none."""
    for index, whole in zip(_INDEXES, _WHOLE, strict=True):
        stem, suffix = whole.split(".")
        if whole in names:
            return {whole}
        if index in names:
            return {index} | {name for name in names if name.startswith(f"{stem}-") and name.endswith(f".{suffix}")}
    return set()


def files(folder: Path) -> list[Path]:
    """The checkpoint's weight files, all of them there; empty where one is missing. Raises SourceError."""
    with reading(folder):
        found = wanted({path.name for path in folder.iterdir()})
    index = next((name for name in found if name.endswith(".index.json")), None)
    if index is not None:
        with reading(folder / index):
            found = {str(name) for name in json.loads((folder / index).read_text())["weight_map"].values()}
    paths = [folder / name for name in sorted(found)]
    return paths if all(path.is_file() for path in paths) else []


def size(folder: Path) -> int:
    """Bytes of the weight files. Raises SourceError."""
    with reading(folder):
        return sum(path.stat().st_size for path in files(folder))


def n_params(folder: Path) -> int | None:
    """How many numbers the weight files hold, from the headers of safetensors; None for others. Raises SourceError."""
    paths = files(folder)
    if not paths or any(path.suffix != ".safetensors" for path in paths):
        return None
    return sum(map(_numbers, paths))


def _numbers(path: Path) -> int:
    with reading(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError("not a safetensors file")
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
        return sum(math.prod(map(int, shape)) for shape in shapes)
