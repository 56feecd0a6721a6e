"""What a model is called by its source; needs no library of the hub, as commands that ask a server elsewhere do not."""

from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import local, package
from interlace_workers.sources.catalogue import Entry, known
from interlace_workers.sources.source import SourceError


def name_of(model: ModelConfig) -> str:
    """The repo id that clients will write, known before anything is fetched."""
    if model.repo_id is not None:
        return model.repo_id
    if local.is_local(model.source):
        return local.name_of(model.source)
    try:
        entry = entry_of(model.source)
    except SourceError:
        entry = None
    return model.source if entry is None else entry.repo_id


def entry_of(source: str) -> Entry | None:
    """The package that a short name or a `package:` source means. Raises SourceError."""
    if (entry := known(source)) is not None:
        return entry
    return package.unvouched(source) if source.startswith("package:") else None
