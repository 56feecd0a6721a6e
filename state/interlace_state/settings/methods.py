"""Of the configuration: jobs that run methods."""

from pydantic import Field

from interlace_state.settings.section import DAY, MOST_BYTES, Section


class MethodsConfig(Section):
    """Published methods as jobs; see docs/methods/README.md."""

    request_bytes: int = Field(default=4 << 20, gt=0, le=MOST_BYTES)
    """Bytes of a request that brings a method's job, or of a form of the pages: more data comes as an artifact."""
    cancel_grace: float = Field(default=10.0, ge=0, le=DAY)
    """Seconds that a cancelled method may take to end with what it has, before it is stopped without."""
    checkpoint_seconds: float = Field(default=30.0, ge=0, le=DAY)
    """How often a method that runs may have it kept where it stands, at most."""
    checkpoint_bytes: int = Field(default=1 << 30, ge=0, le=MOST_BYTES)
    """Bytes of a checkpoint; a larger one is not kept, and its job starts anew if its worker is lost."""
