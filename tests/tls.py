"""One TLS context for every HTTP client of a test process.

httpx makes one for each client, also for plain HTTP, and the stock client has a client for each request; to read
all certificates takes some 25 ms, which was most of the time of many tests. None of them uses TLS.
"""

import functools
import ssl
from unittest import mock


def share_context() -> None:
    mock.patch.object(ssl, "create_default_context", functools.cache(ssl.create_default_context)).start()
