"""What a client meets beside the server's own refusals."""

from interlace.protocol.errors import InterlaceError


class Refused(InterlaceError):
    """The server refused."""

    def __init__(self, status: int, sentence: str, retry_after: float | None = None) -> None:
        super().__init__(sentence)
        #: The HTTP status: 401 no key that works, 403 not for this key, 404 unknown or another's, 409, 422, 429, 503.
        self.http_status = status
        #: Seconds, where the server said when to try again.
        self.retry_after = None if retry_after is None else round(retry_after)


class Unreachable(InterlaceError):
    """Nobody answers there."""


class JobFailed(InterlaceError):
    """The job came to nothing. Where nnsight is in use it is nnsight's `RemoteError`, too."""
