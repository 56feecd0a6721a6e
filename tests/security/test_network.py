"""Promise: a job talks to nobody: not to the network, not to the gateway, not to Redis, not to its neighbours."""

import secrets
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hostile import DENIED, Attack

_FAMILIES = ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG", "AF_CAN")

ATTACKS = [
    Attack(
        "sockets",
        f"""
import socket
for family in {_FAMILIES}:
    for kind in ("SOCK_STREAM", "SOCK_DGRAM", "SOCK_RAW", "SOCK_SEQPACKET"):
        attempt(f"{{family}} {{kind}}", socket.socket, getattr(socket, family), getattr(socket, kind))
attempt("socketpair", socket.socketpair)
""",
    ),
    Attack(
        "below Python",
        """
for family in (1, 2, 10, 16, 17, 38, 40):
    attempt(f"socket {family}", call, "socket", family, 1, 0)
attempt_call("socketpair", 1, 1, 0, 0)
for name in ("connect", "bind", "sendto", "sendmsg"):
    for fd in range(16):
        attempt(f"{name} {fd}", call, name, fd, 0, 0, 0, 0, 0)
""",
    ),
    Attack(
        "the gateway",
        """
import http.client
import urllib.request
host, port = url.removeprefix("http://").split(":")
attempt("urllib", lambda: urllib.request.urlopen(url + "/status", timeout=1).read())
attempt("http.client", lambda: http.client.HTTPConnection(host, int(port), timeout=1).request("GET", "/status"))
import socket
attempt("connect", socket.create_connection, (host, int(port)), 1)
attempt("server", socket.create_server, ("127.0.0.1", 0))
""",
        reports={"urllib": r"(EPERM|URLError\(.*not permitted.*\))"},
    ),
    Attack(
        "Redis",
        """
sys.modules.pop("redis", None)  # which stands in its way
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
once = Retry(NoBackoff(), 0)
for name, path in paths.items():
    if name.startswith("socket"):
        attempt(name, lambda: redis.Redis(unix_socket_path=path, retry=once).execute_command("KEYS", "*"))
attempt("tcp", lambda: redis.Redis("127.0.0.1", retry=once).ping())
""",
        reports={"socket 0": "EPERM", "tcp": "EPERM"},
    ),
    Attack(
        "names",
        """
import socket
for name in ("example.com", "metadata.google.internal", "a" * 60 + ".example.com"):
    attempt(name, lambda: socket.getaddrinfo(name, 80))
    attempt(name + " (old)", socket.gethostbyname, name)
attempt("by hand", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.53", 53)))
""",
        reports={"example.com": "(EPERM|gaierror.*)"},
        refusals=DENIED
        | {"gaierror(-3, 'Temporary failure in name resolution')", "gaierror(-2, 'Name or service not known')"},
    ),
    Attack(
        "event loops and torch.distributed",
        """
import asyncio
import tempfile
attempt("asyncio", asyncio.new_event_loop)
attempt("store", lambda: torch.distributed.TCPStore("127.0.0.1", 0, 1, True))
""",
        reports={"store": r"(EPERM|DistNetworkError.*|RuntimeError.*|ValueError.*)"},
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_refused(siege: Any, attack: Attack) -> None:
    siege.run(attack)


@pytest.fixture
def ears() -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    """A TCP, a UDP and an abstract Unix socket of this machine that listen."""
    tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    abstract.bind(f"\0interlace-tests-{secrets.token_hex(8)}")
    for ear in (tcp, udp, abstract):
        ear.setblocking(False)
    with tcp, udp, abstract:
        yield tcp, udp, abstract


def test_nobody_hears(siege: Any, ears: tuple[socket.socket, ...]) -> None:
    tcp, udp, abstract = ears
    source = f"""
import socket
attempt("tcp", socket.create_connection, {tcp.getsockname()}, 1)
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", {udp.getsockname()}))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", {abstract.getsockname()!r}))
"""
    siege.run(Attack("ears", source))
    with pytest.raises(BlockingIOError):
        tcp.accept()
    for ear in (udp, abstract):
        with pytest.raises(BlockingIOError):
            ear.recv(1)
