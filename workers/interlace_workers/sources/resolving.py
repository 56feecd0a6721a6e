"""Get the files of a model, whichever kind of source it has."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import hub, local, package, pipeline
from interlace_workers.sources.catalogue import CATALOGUE
from interlace_workers.sources.naming import entry_of
from interlace_workers.sources.source import Say, Source, SourceError, Tell


@dataclass(frozen=True)
class Cached:
    """A model that needs no network any more."""

    name: str
    path: Path
    #: Bytes on disk.
    size_bytes: int


def resolve(model: ModelConfig, cache_dir: Path, say: Say) -> Source:
    """The model's files on this machine, fetched or converted if need be. Blocks. Raises SourceError."""
    if (entry := entry_of(model.source)) is not None:
        return package.resolve(entry, model, cache_dir, say)
    if local.is_local(model.source):
        return local.resolve(model)
    if hub.is_repo_id(model.source):
        return hub.resolve(model, say)
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
    if entry_of(model.source) is None and not local.is_local(model.source) and hub.is_repo_id(model.source):
        return hub.resolve(model, say, tell, most_bytes, small=small)
    source = resolve(model, cache_dir, say)
    if most_bytes is not None and source.size_bytes > most_bytes:
        raise hub.too_large(model.source, source.size_bytes, most_bytes)
    return source


def cached(cache_dir: Path) -> list[Cached]:
    """Every complete model in our cache and in the local Hugging Face cache."""
    found = [*package.cached(cache_dir), *hub.cached()]
    return [Cached(name, path, sum(file.stat().st_size for file in _files(path))) for name, path in found]


def is_pipeline(model: ModelConfig) -> bool:
    """Whether it is a pipeline of diffusers, as far as this machine knows before anything is fetched."""
    if local.is_local(model.source):
        return pipeline.is_pipeline(local.folder_of(model.source))
    return hub.is_repo_id(model.source) and hub.is_pipeline(model.source, model.revision)


def _files(path: Path) -> Iterator[Path]:
    """The files of a model, those in the folders of a pipeline's components too."""
    folders = [path]
    if pipeline.is_pipeline(path):
        with suppress(ValueError, OSError):  # a damaged one is listed by what else it has
            folders += pipeline.folders(path).values()
    return (file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.is_file())
