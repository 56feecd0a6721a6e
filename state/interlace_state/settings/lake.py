"""Of the configuration: the lake."""

from pydantic import Field

from interlace_state.settings.section import Section


class LakeConfig(Section):
    """What is remembered of models, artifacts and jobs; see docs/lake.md."""

    kept_runs: int = Field(default=1000, ge=0, le=100_000)
    """Jobs of a tenant that cards and comparisons take measurements from; the oldest go. What made an artifact stays
    in its own manifest."""
    kept_tags: int = Field(default=1000, ge=0, le=100_000)
    """Tags of a tenant."""
    declared_characters: int = Field(default=16_384, ge=0, le=1_000_000)
    """What an owner may say of one artifact, names and texts together."""
