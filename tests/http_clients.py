"""What httpx does by default, made fit for tests: they use no TLS, and the machine may be busy."""

import functools
import ssl
from unittest import mock

from httpx._config import DEFAULT_TIMEOUT_CONFIG


def share_context() -> None:
    """Have one TLS context for all clients of the process.

    httpx makes one for each, also for plain HTTP, and the stock client has a client for each request; to read all
    certificates takes some 25 ms, which was most of the time of many tests.
    """
    mock.patch.object(ssl, "create_default_context", functools.cache(ssl.create_default_context)).start()


def be_patient(seconds: float = 60.0) -> None:
    """Have whoever says nothing of it wait so long for an answer, instead of 5 seconds."""
    for step in ("connect", "read", "write", "pool"):
        setattr(DEFAULT_TIMEOUT_CONFIG, step, seconds)
