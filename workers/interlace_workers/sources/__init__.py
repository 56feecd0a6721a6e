"""Where models come from: one kind of source a file.

* ``smollm2-135m-instruct``                            a name of `catalogue`
* ``package:DISTRIBUTION==VERSION/path/in/wheel.gguf`` `package`, by way of `llama_gguf`
* ``/abs``, ``./rel``, ``~/home``                      `local`
* ``org/name``                                         `hub`
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import local, package, pipeline
from interlace_workers.sources.card import card, dtype_of
from interlace_workers.sources.catalogue import CATALOGUE, Entry, known
from interlace_workers.sources.source import Say, Source, SourceError, Tell
from interlace_workers.sources.weights import reading

__all__ = [
    "CATALOGUE",
    "Cached",
    "Source",
    "SourceError",
    "cached",
    "card",
    "dtype_of",
    "find",
    "is_pipeline",
    "name_of",
    "reading",
    "resolve",
]


@dataclass(frozen=True)
class Cached:
    """A model that needs no network any more."""

    name: str
    path: Path
    #: Bytes on disk.
    size_bytes: int


def resolve(model: ModelConfig, cache_dir: Path, say: Say) -> Source:
    """The model's files on this machine, fetched or converted if need be. Blocks. Raises SourceError."""
    if (entry := _entry(model.source)) is not None:
        return package.resolve(entry, model, cache_dir, say)
    if local.is_local(model.source):
        return local.resolve(model)
    if _hub().is_repo_id(model.source):
        found: Source = _hub().resolve(model, say)
        return found
    raise SourceError(
        f"{model.source!r} names no model. Give a hub repo id (openai-community/gpt2), a folder (./NAME, /PATH/NAME), "
        f"`package:DISTRIBUTION==VERSION/FILE.gguf`, or one of: {', '.join(CATALOGUE)}."
    )


def find(
    model: ModelConfig,
    cache_dir: Path,
    say: Say,
    tell: Tell | None = None,
    most_bytes: int | None = None,
    *,
    small: bool = False,
) -> Source:
    """As `resolve`, for whoever wants to hear how it goes on: ``tell`` takes bytes that are here, and bytes in all.

    A checkpoint over ``most_bytes`` does not come. ``small``: what comes over a network is configuration and
    tokenizer only. Blocks. Raises SourceError.
    """
    if _entry(model.source) is None and not local.is_local(model.source) and _hub().is_repo_id(model.source):
        found: Source = _hub().resolve(model, say, tell, most_bytes, small=small)
        return found
    source = resolve(model, cache_dir, say)
    if most_bytes is not None and source.size_bytes > most_bytes:
        raise _hub().too_large(model.source, source.size_bytes, most_bytes)
    return source


def name_of(model: ModelConfig) -> str:
    """The repo id that clients will write, known before anything is fetched."""
    if model.repo_id is not None:
        return model.repo_id
    if local.is_local(model.source):
        return local.name_of(model.source)
    try:
        entry = _entry(model.source)
    except SourceError:
        entry = None
    return model.source if entry is None else entry.repo_id


def cached(cache_dir: Path) -> list[Cached]:
    """Every complete model in our cache and in the local Hugging Face cache."""
    found = [*package.cached(cache_dir), *_hub().cached()]
    return [Cached(name, path, sum(file.stat().st_size for file in _files(path))) for name, path in found]


def is_pipeline(model: ModelConfig) -> bool:
    """Whether it is a pipeline of diffusers, as far as this machine knows before anything is fetched."""
    if local.is_local(model.source):
        return pipeline.is_pipeline(local.folder_of(model.source))
    return bool(_hub().is_repo_id(model.source) and _hub().is_pipeline(model.source, model.revision))


def _hub() -> Any:
    """`hub`, whose library whoever only names a source may lack, as do commands that ask a server elsewhere."""
    return import_module("interlace_workers.sources.hub")


def _files(path: Path) -> Iterator[Path]:
    """The files of a model, those in the folders of a pipeline's components too."""
    folders = [path]
    if pipeline.is_pipeline(path):
        with suppress(ValueError, OSError):  # a damaged one is listed by what else it has
            folders += pipeline.folders(path).values()
    return (file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.is_file())


def _entry(source: str) -> Entry | None:
    if (entry := known(source)) is not None:
        return entry
    return package.unvouched(source) if source.startswith("package:") else None
