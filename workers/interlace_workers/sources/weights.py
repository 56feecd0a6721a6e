"""What can be known of a checkpoint's weights without loading them."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interlace_workers.sources import pipeline
from interlace_workers.sources.source import SourceError

_LONGEST_HEADER = 100 << 20  # bytes; the bound of the safetensors library itself
#: Of transformers, then of diffusers.
_WHOLE = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


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
    """Of a folder's file names, the weight files that would be loaded; empty where there are none."""
    for whole in _WHOLE:
        stem, suffix = whole.split(".")
        index = f"{whole}.index.json"
        if whole in names:
            return {whole}
        if index in names:
            return {index} | {name for name in names if name.startswith(f"{stem}-") and name.endswith(f".{suffix}")}
    return set()


def files(folder: Path) -> list[Path]:
    """A model's weight files, all of them there; empty where one is missing. Raises SourceError."""
    if not pipeline.is_pipeline(folder):
        return _files(folder)
    parts = [_files(part) for part in _parts(folder)]
    return [path for paths in parts for path in paths] if all(parts) else []


def missing(folder: Path) -> list[str]:
    """The components of a pipeline whose weights are not complete. Raises SourceError."""
    return [part.name for part in _parts(folder) if not _files(part)]


def _parts(folder: Path) -> list[Path]:
    with reading(folder / pipeline.INDEX):
        names = pipeline.with_weights((folder / pipeline.INDEX).read_text())
    return [folder / name for name in names]


def _files(folder: Path) -> list[Path]:
    """The weight files of one folder, as `files`."""
    if not folder.is_dir():
        return []
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
    counts = _counts(folder)
    return None if counts is None else sum(counts.values())


def dtype(folder: Path) -> str | None:
    """The type that most of these numbers have; None where that is not known. Raises SourceError."""
    counts = _counts(folder)
    return _DTYPES.get(max(counts, key=lambda name: counts[name])) if counts else None


def _counts(folder: Path) -> Counter[str] | None:
    """Numbers by their type, in safetensors' words."""
    paths = files(folder)
    if not paths or any(path.suffix != ".safetensors" for path in paths):
        return None
    return sum(map(_numbers, paths), Counter())


def shapes(folder: Path) -> list[tuple[str, tuple[int, ...]]] | None:
    """Name and shape of each tensor in the weight files, as `n_params`. Raises SourceError."""
    paths = files(folder)
    if not paths or any(path.suffix != ".safetensors" for path in paths):
        return None
    return [(name, shape) for path in paths for name, _, shape in _tensors(path)]


def _numbers(path: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for _, stored, shape in _tensors(path):
        found[stored] += math.prod(shape)
    return found


def _tensors(path: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of each tensor in a safetensors file. Raises SourceError."""
    with reading(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError("not a safetensors file")
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        return [
            (name, str(tensor["dtype"]), tuple(map(int, tensor["shape"])))
            for name, tensor in header.items()
            if name != "__metadata__"
        ]
