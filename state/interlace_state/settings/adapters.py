"""Of the configuration: which adapters a request may name."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from interlace.protocol.model import is_repo_id
from interlace_state.settings.section import MOST_BYTES, Section, such


def _is_pattern(text: str) -> bool:
    return text == "*" or is_repo_id(text.removesuffix("/*"))


class AdaptersConfig(Section):
    """Adapters that a request may name in `env.peft`, beside artifacts of its tenant's own; see docs/adapters.md."""

    hub: tuple[Annotated[str, such(_is_pattern, "'org/name', 'org/*' or '*'")], ...] = ()
    """Hub repositories: `org/name`, `org/*`, `*`. Whoever may name one has it fetched with the server's own hub token,
    and kept in its cache."""
    folders: tuple[Path, ...] = ()
    """Folders on the server: an adapter in one of them, or further below, may be named by its path."""
    max_bytes: int = Field(default=1 << 30, gt=0, le=MOST_BYTES)
    """Bytes of an adapter from the hub or a folder; those of artifacts are bounded by `limits.artifact_bytes`."""
    max_rank: int = Field(default=1024, gt=0)
    """The largest rank of an adapter."""
    cache_bytes: int = Field(default=256 << 20, ge=0, le=MOST_BYTES)
    """Bytes of adapters that a replica keeps in memory for the next request that names them."""

    @field_validator("folders")
    @classmethod
    def _absolute(cls, folders: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(folder.expanduser().absolute() for folder in folders)
