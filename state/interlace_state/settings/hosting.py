"""The part of the configuration that says which models may come, and what room they have."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from interlace.protocol.model import is_repo_id
from interlace_state.settings.section import DECADE, MOST_BYTES, Section, such


def _is_pattern(text: str) -> bool:
    return text == "all" or is_repo_id(text) or (text.endswith("/*") and is_repo_id(f"{text[:-1]}x"))


class OnDemandConfig(Section):
    """Models that the first request for them brings; see docs/models.md."""

    allow: tuple[Annotated[str, such(_is_pattern, "'org/name', 'org/*' or 'all'")], ...] = ()
    """What may come: repo ids, `org/*` for an organisation, or `all`; none: only what an operator hosts."""
    size_bytes: int = Field(default=16 << 30, gt=0, le=MOST_BYTES)
    """Bytes of the largest checkpoint that may come so, as the hub has it."""
    idle_seconds: float = Field(default=1800.0, ge=0, le=DECADE)
    """How long no job must have come before such a model leaves the memory."""
    most: int = Field(default=100, ge=1, le=100_000)
    """Such models that are known; over it, those go that were asked for longest ago and are not in memory."""

    def allows(self, repo_id: str) -> bool:
        """Whether a request may bring this repository."""
        return any(one in ("all", repo_id, f"{repo_id.partition('/')[0]}/*") for one in self.allow)


class DeployConfig(Section):
    """What an admin may have hosted by command, beside what this file names; see SECURITY.md."""

    folders: tuple[Path, ...] = (Path("/"),)
    """Folders on the workers' machine: a model in one of them, or further below, may be deployed; `/`: in any."""
    unprotected: bool = True
    """Whether code may run that nothing protects the service's account from: resident models, and checkpoints with
    `trust_remote_code`."""

    @field_validator("folders")
    @classmethod
    def _absolute(cls, folders: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(folder.expanduser().absolute() for folder in folders)


class MemoryConfig(Section):
    """What models may take of a machine's memory; planned before anything is loaded."""

    limit_bytes: int | None = Field(default=None, gt=0, le=MOST_BYTES)
    """Bytes that all models on one machine may take; default: what the machine has free."""
    spare_bytes: int = Field(default=512 << 20, ge=0, le=MOST_BYTES)
    """Bytes that loading a model must leave free, for the jobs."""
    margin: float = Field(default=0.1, ge=0, le=4)
    """What a model takes over its weights, as a share of them; beside it, each process is counted with 480 MiB."""
