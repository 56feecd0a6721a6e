"""What every section of the configuration is made of."""

from collections.abc import Callable
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict

DAY = 24 * 3600  # seconds
DECADE = 3650 * DAY  # no clock of Redis, Lua or the event loop overflows with it
MOST_BYTES = 1 << 50


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def such(that: Callable[[str], object], sentence: str) -> AfterValidator:
    """Refuses a text with ``expected SENTENCE``, unless it is ``that``."""

    def check(value: str) -> str:
        if not that(value):
            raise ValueError(f"expected {sentence}")
        return value

    return AfterValidator(check)


def is_http(url: str) -> bool:
    """Whether it is a URL of HTTP with a host."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
