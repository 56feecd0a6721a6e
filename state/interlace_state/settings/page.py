"""Of the configuration: the pages that the gateway shows in a browser."""

from pydantic import Field

from interlace_state.settings.section import DAY, Section


class PageConfig(Section):
    """The pages, at the gateway's own address; see docs/page.md."""

    enabled: bool = True
    """Whether there are any."""
    session_seconds: int = Field(default=12 * 3600, ge=60, le=30 * DAY)
    """How long somebody who has signed in with a key stays so; ending the key ends it at once."""
    followed_lists: int = Field(default=200, ge=0, le=5000)
    """Lists of jobs that pages follow at a time, of a gateway; each holds a connection to Redis. More ask each 3 s."""
    picture_bytes: int = Field(default=8 << 20, ge=0, le=32 << 20)
    """Bytes of a result up to which its tables and its picture are shown; a larger one is only offered for download."""
