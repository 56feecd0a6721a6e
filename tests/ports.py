"""A port for whoever has to be told one before it listens."""

import random
import socket

#: Below those that the kernel gives to outgoing connections, of which one could have it by the time that it is wanted.
_RANGE = range(20_000, 30_000)


def free() -> int:
    """One of this machine's loopback on which nobody listens."""
    while True:
        port = random.choice(_RANGE)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
